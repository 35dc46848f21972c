"""A run that was stopped goes on as if it had not been: at any step, on any layout and either engine."""

from pathlib import Path

import pytest
import torch.distributed as dist

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.checkpointer import Checkpointer
from card_scale.checkpoint.commit import Publication, form_commit_group
from card_scale.checkpoint.format import CheckpointManifest
from card_scale.checkpoint.load import load
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.retention import Retention
from card_scale.checkpoint.run_files import RunFiles
from card_scale.distributed import parallel_dims, process_groups
from card_scale.training.train_step import TrainStep
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, loss_and_norm, rank_batch, small_config

STEPS = 5
TOLERANCE = 1e-5

LAYOUTS = {
    "one rank, ZeRO-0": (1, dict(zero=0)),
    "tp2 pp2 sequence, ZeRO-3": (4, dict(tensor=2, pipeline=2, sequence=True, zero=3)),
    "pp2 dp2, ZeRO-2": (4, dict(pipeline=2, zero=2)),
    "pp2 dp2, ZeRO-1": (4, dict(pipeline=2, zero=1)),
    "tp2 dp2, FSDP2": (4, dict(tensor=2, engine="fsdp2")),
    "dp2, ZeRO-3": (2, dict(zero=3)),
    "pp2 interleaved, FSDP2": (2, dict(pipeline=2, virtual_pipeline=2, engine="fsdp2")),
}

VARIANTS = {
    "untied": {},
    "tied, grouped keys and values": dict(model=dict(tie_embeddings=True, kv_heads=2)),
    # Its noise depends on a sample's place in the whole run.
    "block diffusion": dict(objective=dict(name="bd3lm", block=4, min_mask=0.3, max_mask=0.8)),
}


def config_of(layout: str, variant: str):
    return small_config(
        parallel=LAYOUTS[layout][1],
        optimizer=dict(ema=0.9),
        # As many micro-batches as the phases of a pipeline's schedule need.
        train=dict(steps=STEPS, micro_batch=2),
        **VARIANTS[variant],
    )


def updates_of_all(configs, *arguments):
    """Run :func:`updates` for each variant's configuration, all of one layout, in one set of processes."""
    layout = parallel_dims.plan(configs[0], dist.get_world_size())
    process_groups.initialize(layout, 60)
    return [
        updates(config, variant, layout.describe(), *arguments)
        for variant, config in zip(VARIANTS, configs, strict=True)
    ]


def updates(config, variant: str, layout: str, first: int, last: int, resume_from: Path | None, save_to: Path | None):
    """Load where asked, make updates first + 1 ... last, save where asked; return each update's (loss, norm)."""
    engine = engine_of(config)
    if resume_from:
        path, manifest, problems = directories.find_latest(resume_from / variant)
        assert (manifest.step, problems) == (first, [])
        with CheckpointReader(path, manifest) as reader:
            load(engine, reader)
    train_step = TrainStep(engine, config.objective, config)
    trajectory = []
    for step in range(first, last):
        result = train_step(rank_batch(config, step), config.optimizer.lr)
        trajectory.append(loss_and_norm(train_step, result))
    if save_to:
        description = CheckpointManifest(
            last, list(engine.state_keys()), layout, config.parallel.engine, "t", "d", {}, {}, {}
        )
        run_files = RunFiles({"step": last}, config.to_yaml(), save_to / "tokenizer.model")
        publication = Publication(description, run_files, Retention())
        Checkpointer(save_to / variant, form_commit_group(60)).save(engine, publication)
    return trajectory


def run(layout: str, first: int, last: int, resume_from: Path | None = None, save_to: Path | None = None):
    """Return the trajectories of the variants."""
    if save_to:
        save_to.mkdir(parents=True, exist_ok=True)
        (save_to / "tokenizer.model").write_bytes(b"stand-in")
    configs = [config_of(layout, variant) for variant in VARIANTS]
    return run_ranks(updates_of_all, LAYOUTS[layout][0], configs, first, last, resume_from, save_to, deadline=120)[0]


@pytest.fixture(scope="module")
def uninterrupted():
    return run("one rank, ZeRO-0", 0, STEPS)


def assert_same(found, expected, what: str):
    for variant, mine, theirs in zip(VARIANTS, found, expected, strict=True):
        for step, (pair, expected_pair) in enumerate(zip(mine, theirs, strict=True), start=1):
            assert pair == pytest.approx(expected_pair, rel=TOLERANCE), f"{what}, {variant}, update {step} of the run"


def part(trajectories, first: int, last: int):
    return [trajectory[first:last] for trajectory in trajectories]


CONTINUED = {
    "tp2 pp2 sequence, ZeRO-3": list(LAYOUTS),
    "pp2 dp2, ZeRO-2": ["one rank, ZeRO-0", "tp2 dp2, FSDP2", "pp2 interleaved, FSDP2"],
    "tp2 dp2, FSDP2": ["tp2 pp2 sequence, ZeRO-3", "pp2 dp2, ZeRO-1", "dp2, ZeRO-3"],
}
"""Where a run that was saved at a layout goes on: one at all others, for all store the same (test_reader.py)."""


@pytest.mark.parametrize("saved_at", CONTINUED)
def test_any_layout_and_engine_continues_any_other(tmp_path, uninterrupted, saved_at):
    before = run(saved_at, 0, 2, save_to=tmp_path)
    assert_same(before, part(uninterrupted, 0, 2), "before the stop")
    for layout in CONTINUED[saved_at]:
        found = run(layout, 2, STEPS, resume_from=tmp_path)
        assert_same(found, part(uninterrupted, 2, STEPS), f"{saved_at} -> {layout}")


@pytest.mark.parametrize("stop", range(1, STEPS))
def test_a_stop_after_any_step(tmp_path, uninterrupted, stop):
    run("one rank, ZeRO-0", 0, stop, save_to=tmp_path)
    found = run("dp2, ZeRO-3", stop, STEPS, resume_from=tmp_path)
    assert_same(found, part(uninterrupted, stop, STEPS), f"stop after {stop}")


def test_a_chain_of_layouts(tmp_path, uninterrupted):
    """Save, load and save again: nothing is lost on the way through four layouts."""
    chain = ["pp2 dp2, ZeRO-1", "pp2 interleaved, FSDP2", "tp2 pp2 sequence, ZeRO-3", "one rank, ZeRO-0"]
    found, before = [[] for _ in VARIANTS], None
    for number, layout in enumerate(chain):
        here = tmp_path / str(number)
        made = run(layout, number, STEPS if number == 3 else number + 1, resume_from=before, save_to=here)
        for whole, piece in zip(found, made, strict=True):
            whole += piece
        before = here
    assert_same(found, uninterrupted, "the chain")
