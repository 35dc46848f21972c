"""The whole tool on a small model: tables, JSON, curves and figure."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch.distributed as dist
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from card_scale.benchmark import arms, latency, ratio_figure
from card_scale.benchmark.instruments import PARTS
from card_scale.benchmark.report import parts_over_whole, tables, to_json
from card_scale.distributed import process_groups
from card_scale.errors import ConfigurationError
from tests.launchers.processes import REPOSITORY
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import small_config

ARMS = ["ar", "card", "mdlm", "bd3lm-split-b4", "bd3lm-dense-b4"]
TOOL = [sys.executable, "tools/bench_step_latency.py"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory of one run's files, and what it printed."""
    directory = tmp_path_factory.mktemp("latency")
    (directory / "small.yaml").write_text(small_config(parallel=dict(zero=0)).to_yaml())
    command = [
        *TOOL,
        str(directory / "small.yaml"),
        "train.global_batch=2",
        "--arms",
        "ar",
        "card",
        "mdlm",
        "bd3lm-split",
    ]
    command += ["bd3lm-dense", "--blocks", "4", "--lengths", "16", "32", "--vocabulary", "250", "--steps", "3"]
    command += ["--warm-up", "2", "--tolerance", "inf", "--memory-gib", "0.004", "--profile"]
    for option, name in (("--json", "out.json"), ("--tensorboard", "curves"), ("--plot", "out.png")):
        command += [option, str(directory / name)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return directory, done.stdout


def test_the_record_holds_every_sample_and_its_sums(written):
    directory, _ = written
    record = json.loads((directory / "out.json").read_text())
    assert record["environment"]["commit"]
    assert [result["length"] for result in record["results"]] == [16, 32]
    for result in record["results"]:
        assert list(result["arms"]) == ARMS
        for name, arm in result["arms"].items():
            samples = arm["samples_seconds"]
            assert len(samples["step"]) == 3
            assert set(samples["parts"]) == set(PARTS)
            assert arm["step_seconds"]["low"] <= arm["step_seconds"]["median"] <= arm["step_seconds"]["high"]
            assert arm["forward_seconds"]["median"] < arm["forward_backward_seconds"]["median"]
            assert arm["peak_bytes"] > 0
            share = arm["supervised_tokens_per_step"] / result["tokens_per_step"]
            assert share == 1.0 if name in ("ar", "card") else 0.1 < share < 0.9
        compared = {(pair["arm"], pair["base"]) for pair in result["comparisons"]}
        assert compared == {("card", "ar"), *((name, "card") for name in ARMS[2:])}
        best = result["best_micro_batch"]
        assert best["arms"]["card"]["micro_batch"] > best["arms"]["bd3lm-split-b4"]["micro_batch"] >= 1
        assert {arm["micro_batch"] & (arm["micro_batch"] - 1) for arm in best["arms"].values()} == {0}


def test_tables_fit_a_terminal(written):
    _, printed = written
    assert "card / ar" in printed
    assert "bd3lm-dense-b4 / card" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_curves_lie_over_the_length(written):
    directory, _ = written
    curves = EventAccumulator(str(directory / "curves" / "small-deepspeed")).Reload()
    assert [event.step for event in curves.Scalars("ratio/bd3lm-split-b4_over_card")] == [16, 32]
    assert {f"part_ms/{part}/card" for part in PARTS} <= set(curves.Tags()["scalars"])


def test_a_figure_and_profiles_are_written(written):
    directory, _ = written
    assert (directory / "out.png").read_bytes().startswith(b"\x89PNG")
    profiles = sorted(path.name for path in directory.glob("out_small_L*_profile.txt"))
    assert len(profiles) == 2 * len(ARMS)
    assert "Self CPU" in (directory / profiles[0]).read_text()


def test_the_figure_has_a_line_per_backend_with_its_reference(written):
    directory, _ = written
    results = json.loads((directory / "out.json").read_text())["results"]
    (panel,) = ratio_figure.lines(results).values()
    assert {backend: [point.length for point in points] for backend, points in panel.items()} == {
        "split": [16, 32],
        "dense": [16, 32],
    }
    assert panel["split"][0].by_flops == panel["dense"][0].by_flops
    with pytest.raises(ConfigurationError, match="--arms card bd3lm"):
        ratio_figure.draw([{**results[0], "comparisons": []}], directory / "none.png", "")


def test_sums_of_arms_and_ratios_are_checked(written):
    directory, _ = written
    (result, _) = json.loads((directory / "out.json").read_text())["results"]
    names = parts_over_whole(result)
    assert names["small L 16 card"] == result["arms"]["card"]["parts_over_step"]
    assert {"small L 16 bd3lm-split-b4/card", "small L 16 card at its largest micro-batch"} <= set(names)
    assert "attention is part of the compiled layers" not in tables(result)


def test_json_keeps_numbers_of_a_list_on_a_line():
    record = {"a": [1.5, -2e-07], "b": [[1], [2, 3]], "text": "[1,\n 2]", "none": None}
    text = to_json(record)
    assert json.loads(text) == record
    assert re.search(r'"a": \[.*\],', text)


BAD_INPUT = [
    (["--arms", "bd3lm", "--blocks", "3"], 3, "objective.block 3 does not divide model.length"),
    (["--arms", "bd3lm-flex-b16"], 3, "flex"),
    (["--arms", "card", "--warm-up", "1"], 2, "--warm-up"),
    (["--arms", "card", "--lengths", "67108864"], 3, "would fit"),
]

RUN_WITH_EACH = """
import contextlib, io, json, runpy, sys
tool, *shared = sys.argv[2:]
for options in json.loads(sys.argv[1]):
    sys.argv = [tool, *shared, *options]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as ended:
            print(json.dumps([ended.code, said.getvalue()]))
"""


@pytest.fixture(scope="module")
def refusals() -> list[tuple[int, str]]:
    """The tool's exit codes and what it said, all in one process that sees no GPU: torch is imported once."""
    command = [sys.executable, "-c", RUN_WITH_EACH, json.dumps([options for options, *_ in BAD_INPUT]), TOOL[1]]
    command += ["launchers/configs/quickstart.yaml", "parallel.pipeline=1"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(BAD_INPUT)), ids=[message for *_, message in BAD_INPUT])
def test_bad_input_ends_with_a_line_and_its_code(refusals, number):
    _, code, message = BAD_INPUT[number]
    found, said = refusals[number]
    assert found == code
    assert message in said
    assert "Traceback" not in said


def measured(config) -> dict:
    settings = latency.Settings(
        arms=arms.parse(["card", "bd3lm-b4"], []), vocabulary=250, steps=2, warm_up=2, memory_cap=2**22, profile=False
    )
    cases = latency.cases([("small", config)], [16], 32, dist.get_world_size())
    layout = latency.check(cases, settings, dist.get_world_size())
    process_groups.initialize(layout, 60)
    ((result, _),) = latency.run(cases, settings, layout)
    return result


@pytest.mark.parametrize("parallel", [dict(pipeline=2, zero=1), dict(engine="fsdp2")], ids=str)
def test_every_rank_has_the_same_result(parallel):
    config = small_config(parallel=parallel, train=dict(global_batch=2))
    first, second = run_ranks(measured, 2, config, deadline=90)
    assert {**first, "gemm_flops_per_second": 0} == {**second, "gemm_flops_per_second": 0}
    assert set(first["arms"]) == {"card", "bd3lm-b4"}
    assert first["tokens_per_step"] == 64
    assert first["best_micro_batch"]["arms"]["card"]["micro_batch"] >= 1
