"""Real torchrun, stand-in training program: ranks, exit codes and stop requests through the launch scripts."""

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from tests.launchers.processes import LAUNCHERS, STAND_IN, Processes, environment

ONE_NODE = str(LAUNCHERS / "torchrun_one_node.sh")
MULTI_NODE = str(LAUNCHERS / "torchrun_multi_node.sh")


def write_config(directory: Path, **act) -> tuple[str, Path]:
    """Return (configuration file, run directory)."""
    run = directory / "run"
    config = directory / "config.yaml"
    config.write_text(yaml.safe_dump({"run": {"dir": str(run)}, "act": act}), encoding="utf-8")
    return str(config), run


def start(processes: Processes, *command: str, **variables: str) -> subprocess.Popen:
    """Start a command where ``card_scale.train`` is the stand-in."""
    return processes.start(list(command), STAND_IN, environment(**variables))


def nothing_left(processes: Processes) -> bool:
    """Whether every process has ended within a moment (the shell's last ``sleep`` may outlive it)."""
    end = time.monotonic() + 10
    while processes.alive():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def test_one_node_runs_the_ranks_and_returns_the_recorded_code(tmp_path, processes):
    config, run = write_config(tmp_path, code=6)
    script = start(processes, ONE_NODE, "--nproc", "2", config, "train.steps=3", "model.layers=2", OMP_NUM_THREADS="7")
    assert processes.wait(script) == 6, processes.text(script)
    worlds = [json.loads((run / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    for rank, world in enumerate(worlds):
        assert world["arguments"] == ["train.steps=3", "model.layers=2"]
        seen = world["environment"]
        assert (seen["RANK"], seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == (str(rank), str(rank), "2")
        assert seen["OMP_NUM_THREADS"] == "7"  # kept
        assert seen["CUDA_DEVICE_MAX_CONNECTIONS"] == "1"  # defaulted
    assert nothing_left(processes)


def test_a_record_of_an_earlier_run_is_not_believed(tmp_path, processes):
    config, run = write_config(tmp_path, code=9, record=False)
    run.mkdir()
    (run / "exit.json").write_text('{"code": 75, "reason": "earlier"}')
    script = start(processes, ONE_NODE, config, NPROC="1")
    assert processes.wait(script) == 1, processes.text(script)


def test_a_stop_is_passed_on_where_no_note_can_be_left(tmp_path, processes):
    config, run = write_config(tmp_path)
    script = start(processes, ONE_NODE, config, NPROC="1")
    processes.until(script, lambda: (run / "rank-0.json").exists())
    world = json.loads((run / "rank-0.json").read_text())
    notes = Path(world["environment"]["CARD_LAUNCH_NOTES"])
    notes.rmdir()
    script.send_signal(signal.SIGTERM)
    assert processes.wait(script) == 75, processes.text(script)
    assert nothing_left(processes)


def test_a_note_serves_where_the_run_directory_is_another_runs(tmp_path, processes):
    config, run = write_config(tmp_path, code=3, record=False, note=True)
    run.mkdir()
    (run / "exit.json").write_text('{"code": 75, "reason": "earlier"}')
    script = start(processes, ONE_NODE, config, NPROC="1")
    assert processes.wait(script) == 3, processes.text(script)
    assert processes.text(script).splitlines()[-1] == "exit code: 3: another run's"
    [world] = [json.loads(path.read_text()) for path in run.glob("rank-*.json")]
    assert not Path(world["environment"]["CARD_LAUNCH_NOTES"]).exists()


def test_a_refused_configuration_starts_no_rank(tmp_path, processes):
    config, run = write_config(tmp_path, refuse=True)
    script = start(processes, ONE_NODE, config, NPROC="1")
    assert processes.wait(script) == 3
    assert "error: refused" in processes.text(script)
    assert not run.exists()


@pytest.mark.parametrize("how", ["SIGTERM to the script", "Ctrl-C"])
def test_a_stop_request_is_repeated_until_it_is_heard(tmp_path, processes, how):
    config, run = write_config(tmp_path, deaf_seconds=2)
    script = start(processes, ONE_NODE, config, NPROC="2")
    processes.until(script, lambda: (run / "rank-0.json").exists() and (run / "rank-1.json").exists())
    if how == "Ctrl-C":
        os.killpg(script.pid, signal.SIGINT)
    else:
        script.send_signal(signal.SIGTERM)
    assert processes.wait(script) == 75, processes.text(script)
    last = processes.text(script).splitlines()[-1]
    assert last == f"{run / 'exit.json'}: 75: told to"  # and not torchrun's FAILED
    heard = {"Ctrl-C": "SIGINT", "SIGTERM to the script": "SIGTERM"}[how]
    assert [(run / f"cause-{rank}").read_text().strip() for rank in (0, 1)] == [heard, heard]
    assert nothing_left(processes)


def test_the_second_ctrl_c_kills(tmp_path, processes):
    config, run = write_config(tmp_path, deaf_seconds=600)
    script = start(processes, ONE_NODE, config, NPROC="1")
    processes.until(script, lambda: (run / "rank-0.json").exists())
    os.killpg(script.pid, signal.SIGINT)
    processes.until(script, lambda: "asked the training processes" in processes.text(script))
    os.killpg(script.pid, signal.SIGINT)
    assert processes.wait(script) == 1, processes.text(script)
    assert json.loads((run / "exit.json").read_text()) == {
        "code": 1,
        "reason": "killed by a second Ctrl-C; the last checkpoint stays",
    }
    assert nothing_left(processes)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_nodes_form_one_world_and_both_return_the_recorded_code(tmp_path, processes):
    config, run = write_config(
        tmp_path, code=4, late_seconds=2
    )  # the node without rank 0 ends before the record is there
    options = ["--nnodes", "2", "--head", f"127.0.0.1:{free_port()}", "--job-id", "two-nodes", "--nproc", "2"]
    nodes = [start(processes, MULTI_NODE, *options, config) for _ in range(2)]
    assert [processes.wait(node) for node in nodes] == [4, 4], "\n".join(map(processes.text, nodes))
    seen = [json.loads((run / f"rank-{rank}.json").read_text())["environment"] for rank in range(4)]
    assert {world["WORLD_SIZE"] for world in seen} == {"4"}
    assert sorted(world["LOCAL_RANK"] for world in seen) == ["0", "0", "1", "1"]
    assert len({world["MASTER_PORT"] for world in seen}) == 1
    assert nothing_left(processes)


def test_a_node_that_waits_for_others_can_be_stopped(tmp_path, processes):
    config, run = write_config(tmp_path, code=0)
    variables = {"NNODES": "2", "HEAD": f"127.0.0.1:{free_port()}", "JOB_ID": "waiting", "NPROC": "1"}
    node = start(processes, MULTI_NODE, config, **variables)
    processes.until(node, lambda: any("torchrun" in name for name in command_lines(processes)))
    node.send_signal(signal.SIGUSR1)
    assert processes.wait(node) == 75, processes.text(node)
    assert not run.exists()
    assert nothing_left(processes)


def command_lines(processes: Processes) -> list[str]:
    """Return the programs of the processes alive (without the launch scripts)."""
    lines = []
    for pid in processes.alive():
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # ended meanwhile
            continue
        if ".sh" not in line:
            lines.append(line)
    return lines
