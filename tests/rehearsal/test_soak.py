"""What a soak draws, damages and compares. (That a disturbed run ends as a calm one takes minutes: tools/soak.py.)"""

import collections
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import torch

from card_scale import faults
from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import StoredPiece
from card_scale.rehearsal.disturbances import Job, damage_newest, draw
from card_scale.rehearsal.soak import differences, final
from card_scale.training.run_directory import RunDirectory
from tests.checkpoint import handmade

WEIGHT = torch.arange(8.0).view(4, 2)


def publish(directory, step, weight):
    return handmade.publish(directory, step, {"weight": {"w": weight}}, {"w": (0, [StoredPiece("a", 0, 4)])})


def test_every_kind_is_drawn_and_every_fault_is_one():
    generator = random.Random(1)
    drawn = [draw(generator, 2, range(5, 9)) for _ in range(400)]
    kinds = collections.Counter(each.name.partition(" at ")[0].partition(",")[0] for each in drawn)
    assert kinds.keys() == {
        "kill -9 of a rank",
        "kill -9 of all",
        "SIGTERM to the launcher",
        "SIGUSR1 to a rank",
        "the file STOP",
        "kill",
        "exception",
        "enospc",
    }
    for each in drawn:
        (fault,) = faults.parse(each.fault) or [None]
        if fault is not None:
            assert fault.rank in (0, 1)
            assert fault.steps is None or fault.steps[0] in range(5, 9)
            of_rank_0 = ("checkpoint.manifest", "checkpoint.named", "checkpoint.pointed", "checkpoint.pruned")
            assert fault.rank == 0 or fault.at not in of_rank_0, "another rank never comes there"
    assert {each.fault.split(",")[1] for each in drawn if each.fault} >= {"at=step.update", "at=checkpoint.named"}


def test_damage_never_takes_the_only_checkpoint(tmp_path):
    run = RunDirectory(tmp_path)
    damage_newest(run, random.Random(1))
    publish(run.checkpoints, 1, WEIGHT)
    before = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    damage_newest(run, random.Random(1))
    assert all(path.read_bytes() == content for path, content in before.items())
    publish(run.checkpoints, 2, WEIGHT)
    newest = run.checkpoints / directories.name_of(2)
    before = {path: path.read_bytes() for path in run.checkpoints.rglob("*") if path.is_file()}
    damage_newest(run, random.Random(1))
    (changed,) = (path for path, content in before.items() if path.read_bytes() != content)
    assert newest in changed.parents
    assert bin(int.from_bytes(changed.read_bytes()) ^ int.from_bytes(before[changed])).count("1") == 1


def test_differences_are_relative(tmp_path):
    one, same = (publish(tmp_path / name / "checkpoints", 3, WEIGHT) for name in ("one", "same"))
    assert differences(one, same) == {"weight": 0.0}
    shutil.rmtree(same)
    other = publish(tmp_path / "same" / "checkpoints", 4, WEIGHT * 1.001)
    assert abs(differences(other, one)["weight"] - 0.001) < 1e-5
    assert final(tmp_path / "same") == other


def test_the_ranks_of_a_launcher_are_its_children(tmp_path):
    program = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    launcher = subprocess.Popen([sys.executable, "-c", f"{program}; time.sleep(60)"], start_new_session=True)
    try:
        end = time.monotonic() + 20
        while not (ranks := Job(launcher.pid, RunDirectory(tmp_path)).ranks()):
            assert time.monotonic() < end
            time.sleep(0.02)
        assert len(ranks) == 1
        os.kill(ranks[0], signal.SIGKILL)
    finally:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    assert Job(launcher.pid, RunDirectory(tmp_path)).ranks() == []
