"""What a run goes on from, and the data that it refuses to go on with: the same for a run and for a dry run."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist

from card_scale import config as configs
from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import MANIFEST_NAME, CheckpointManifest
from card_scale.checkpoint.run_files import RunFiles
from card_scale.data.manifest import Decontamination, FileRecord, Manifest
from card_scale.distributed import parallel_dims
from card_scale.errors import DataError, ExitCode
from card_scale.files import sha256_file
from card_scale.train import main
from card_scale.training import run_data
from card_scale.training.run_checkpoints import RunCheckpoints
from card_scale.training.run_directory import RunDirectory
from tests.end_to_end.conftest import write_config
from tests.layouts.processes import run_ranks


def without_a_document(dataset: Path, copy: Path) -> Path:
    """Copy a dataset, with the first of its validation documents left out."""
    shutil.copytree(dataset, copy)
    np.save(copy / "excluded.npy", np.array([0]))
    excluded = FileRecord("excluded.npy", (copy / "excluded.npy").stat().st_size, sha256_file(copy / "excluded.npy"))
    record = Decontamination(13, 0.5, (), 9, 90, 8, 1, {}, 1, 17, excluded)
    dataclasses.replace(Manifest.load(dataset), decontamination=record).save(copy)
    return copy


def publish(run: RunDirectory, dataset: Path, **changes) -> Path:
    """Publish a checkpoint without tensors of a run on a dataset; ``changes`` are of its manifest or its state."""
    manifest = Manifest.load(dataset)
    state = changes.pop("state", {"step": 2, "validation_digest": manifest.digest})
    temporary = run.checkpoints / directories.temporary_name(2)
    temporary.mkdir(parents=True)
    description = CheckpointManifest(
        step=2,
        state_keys=["weight"],
        layout="by hand",
        engine="none",
        tokenizer_sha256=manifest.tokenizer.sha256,
        data_digest=manifest.digest,
        versions={},
        tensors={},
        files=RunFiles(state, "run: {}\n", dataset / manifest.tokenizer.name).write(temporary),
    )
    (temporary / MANIFEST_NAME).write_text(dataclasses.replace(description, **changes).to_json())
    return directories.publish(temporary, 2)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def config_file(tmp_path, dataset) -> Path:
    return write_config(tmp_path, dataset)


def dry_run(config_file: Path, capsys, *overrides: str, code: int = ExitCode.DONE) -> str:
    assert main([str(config_file), "--dry-run", *overrides]) == code
    assert not dist.is_initialized()
    said = capsys.readouterr()
    return said.err if code else said.out


def test_a_dry_run_says_where_the_run_would_begin(config_file, dataset, run, capsys):
    begins = dry_run(config_file, capsys)
    assert f"would start a new run in {run.path}" in begins
    resolved = begins[begins.index("\nconfiguration:\n") :].partition(":\n")[2]
    assert resolved == configs.load(config_file, []).to_yaml()
    path = publish(run, dataset)
    assert f"would resume from {path} (by hand, none)" in dry_run(config_file, capsys)
    (path / MANIFEST_NAME).unlink()
    assert "no complete checkpoint is left" in dry_run(config_file, capsys, code=ExitCode.CHECKPOINT)
    assert not run.exit.exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizer_sha256": "f" * 64}, "tokenizer ffffffffffff, the data has"),
        ({"data_digest": "0123"}, "trained on data 0123, data.path holds"),
        ({"state": {"validation_digest": "4567"}}, "evaluated on data 4567, data.validation holds"),
    ],
)
def test_other_data_are_refused_by_a_dry_run(config_file, dataset, run, capsys, changes, words):
    path = publish(run, dataset, **changes)
    message = dry_run(config_file, capsys, code=ExitCode.DATA)
    assert words in message
    assert str(path) in message


def test_documents_left_out_of_the_validation_set_since_are_noticed(config_file, dataset, run, tmp_path, capsys):
    other = without_a_document(dataset, tmp_path / "other")
    publish(run, dataset)
    message = dry_run(config_file, capsys, f"data.validation={other}", code=ExitCode.DATA)
    assert Manifest.load(dataset).digest in message
    assert Manifest.load(other).digest in message
    assert "would resume" in dry_run(config_file, capsys, "data.validation_samples=3")


def test_a_checkpoint_from_before_the_digest_was_kept_goes_on_unchecked(config_file, dataset, run, tmp_path, capsys):
    other = without_a_document(dataset, tmp_path / "other")
    publish(run, dataset, state={"step": 2})
    assert "would resume" in dry_run(config_file, capsys, f"data.validation={other}")


def resume(config_file: Path, directory: Path) -> str:
    """Return why a run's checkpoints refuse to be resumed from, before any engine is asked."""
    config = configs.load(config_file, [])
    data = run_data.open_data(config)
    checkpoints = RunCheckpoints(
        None, config, parallel_dims.plan(config, dist.get_world_size()), data, RunDirectory(directory.parent)
    )
    with pytest.raises(DataError) as caught:
        checkpoints.resume()
    return str(caught.value)


def test_a_run_refuses_what_a_dry_run_refuses(config_file, dataset, run, capsys):
    publish(run, dataset, state={"validation_digest": "4567"})
    said = dry_run(config_file, capsys, code=ExitCode.DATA)
    for message in run_ranks(resume, 2, config_file, run.checkpoints):
        assert said == f"error: {message}\n"
