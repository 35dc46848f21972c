"""Files that run code where they are unpickled, to be planted in place of a project's own.

What they run makes a directory, the marker: where it is missing, nothing was run.
"""

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest


class _Trap:
    """Pickles as a call that makes a directory."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class Hostile:
    """What would make ``marker``: files by format, and YAML values."""

    def __init__(self, marker: Path):
        import torch  # only here: every session loads this module, most need no torch

        self.marker = marker
        self.files = {
            "pickle": pickle.dumps(_Trap(marker)),
            # As text it passes where UTF-8 is asked for; the line break ends it as a line.
            "pickle in ASCII": pickle.dumps(_Trap(marker), protocol=0) + b"\n",
            "torch": _written(lambda file: torch.save({"weight": _Trap(marker)}, file)),
            "torch before zip": _written(
                lambda file: torch.save({"weight": _Trap(marker)}, file, _use_new_zipfile_serialization=False)
            ),
            "npy of objects": _written(lambda file: np.save(file, np.array([_Trap(marker)], dtype=object))),
            "npz of objects": _written(lambda file: np.savez(file, np.array([_Trap(marker)], dtype=object))),
        }
        self.yaml = [
            f"!!python/object/apply:os.mkdir [{marker}]",
            f"!!python/object/new:os.mkdir [{marker}]",
            f"!!python/object/apply:os.system ['mkdir {marker}']",
            f"!!python/object/apply:subprocess.check_output [['mkdir', '{marker}']]",
        ]

    def sprung(self) -> bool:
        """Whether the code has run; it can run again."""
        there = self.marker.exists()
        if there:
            self.marker.rmdir()
        return there


def _written(write) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


FORMATS = ("pickle", "pickle in ASCII", "torch", "torch before zip", "npy of objects", "npz of objects")


@pytest.fixture
def hostile(tmp_path_factory) -> Iterator[Hostile]:
    """What a test plants; that it was run fails the test."""
    planted = Hostile(tmp_path_factory.mktemp("hostile") / "marker")
    assert tuple(planted.files) == FORMATS
    yield planted
    assert not planted.sprung(), "a file was unpickled"
