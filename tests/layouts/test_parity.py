"""Layout parity: any layout, engine and schedule trains what one rank trains, at every step."""

import dataclasses
import json
from pathlib import Path

import pytest

from card_scale.config import Config
from tests.layouts.parity import assert_parity, check_cells, deadline
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import run_variants, small_config

LAYOUTS = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 1), (2, 1, 2), (2, 2, 2)]
"""(tensor, pipeline, data) sizes."""

ENGINES = [{"zero": 0}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"engine": "fsdp2"}]

BF16_TOLERANCE = 2e-3
"""bf16 has 8 bits, 4e-3 a rounding; layouts round other partial sums. Measured: below 5e-4 at these sizes."""


def named(layout: tuple[int, int, int]) -> str:
    return "x".join(map(str, layout))


def cell(layout: tuple[int, int, int], engine: dict, tied: bool = False, sequence: bool = False, **changes) -> Config:
    """Return the configuration of one cell; keywords ``group=dict(key=value)`` change keys."""
    tensor, pipeline, _ = layout
    parallel = {"tensor": tensor, "pipeline": pipeline, "sequence": sequence, **engine, **changes.pop("parallel", {})}
    model = {"tie_embeddings": tied, **changes.pop("model", {})}
    return small_config(parallel=parallel, model=model, **changes)


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_every_engine_equals_one_rank(references, layout):
    cells = [
        cell(layout, engine, tied, sequence)
        for sequence in ((False, True) if layout[0] > 1 else (False,))
        for tied in (False, True)
        for engine in ENGINES
    ]
    ranks = check_cells(references, layout, cells)
    # Equality alone would let an engine pass that shards nothing.
    for index, config in enumerate(cells):
        whole = sum(rank[0].master_elements for rank in ranks)  # zero0, untied
        held = sum(rank[index].master_elements for rank in ranks)
        copies = layout[2] if config.parallel.zero == 0 else 1
        tied_saving = config.model.tie_embeddings and layout[1] == 1
        if not tied_saving:
            assert held == pytest.approx(whole / layout[2] * copies, rel=0.02), config.parallel
        if config.parallel.zero == 3:
            assert max(rank[index].resident_elements for rank in ranks) < 0.05 * whole / len(ranks)


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_dropout_recomputation_and_larger_micro_batches(references, layout):
    sequence = layout[0] > 1
    dropout, recompute = {"dropout": 0.1}, {"recompute": "full"}
    zero2, zero3, fsdp2 = {"zero": 2}, {"zero": 3}, {"engine": "fsdp2"}
    check_cells(
        references,
        layout,
        [
            cell(layout, zero2, False, sequence, model=dropout),
            cell(layout, zero3, True, sequence, model=dropout, parallel=recompute),
            cell(layout, fsdp2, True, False, model=dropout, parallel=recompute),
            cell(layout, zero3, False, sequence, train={"micro_batch": 2}, optimizer={"ema": 0.8}),
            cell(layout, fsdp2, False, sequence, train={"micro_batch": 2}, optimizer={"ema": 0.8}),
        ],
    )


def test_without_micro_batches(references):
    layout = (1, 1, 2)
    check_cells(references, layout, [cell(layout, engine, train={"micro_batch": 4}) for engine in ENGINES])


ABLATIONS = [
    {"name": "ar"},
    {"masking": "uniform"},
    {"reweight": False},
    {"tail_factor": 2.5},
    {"decay": 0.1, "beta": 2.0},
    {"min_noise": 0.3, "max_noise": 0.6},
]


@pytest.mark.parametrize("layout", [(1, 2, 2), (2, 1, 2)], ids=named)
def test_ar_and_the_ablations_of_card(references, layout):
    cells = [
        cell(layout, engine, sequence=layout[0] > 1, objective=objective)
        for objective in ABLATIONS
        for engine in ({"zero": 3}, {"engine": "fsdp2"})
    ]
    check_cells(references, layout, cells)


@pytest.mark.parametrize("layout", [(1, 2, 1), (1, 2, 2), (2, 2, 1)], ids=named)
def test_interleaved_pipeline(references, layout):
    cells = [
        cell(layout, engine, tied, sequence=layout[0] > 1, parallel={"virtual_pipeline": 2}, model={"dropout": dropout})
        for engine in ({"zero": 0}, {"zero": 1}, {"zero": 2}, {"engine": "fsdp2"})
        for tied, dropout in ((False, 0.1), (True, 0.0))
    ]
    check_cells(references, layout, cells)


def test_four_stages(references):
    layout = (1, 4, 1)
    cells = [cell(layout, engine, tied) for engine in ENGINES for tied in (False, True)]
    check_cells(references, layout, [*cells, cell(layout, {"zero": 3}, model={"dropout": 0.1})])


@pytest.mark.parametrize("threshold", [0, 10**9], ids=["all_sharded", "all_persistent"])
@pytest.mark.parametrize("layout", [(1, 1, 2), (1, 2, 2), (2, 2, 1)], ids=named)
def test_zero3_with_every_and_with_no_weight_sharded(references, tmp_path, layout, threshold):
    """The automatic threshold keeps norms gathered and shards matrices; these are the two extremes."""
    path = tmp_path / f"persistence_{threshold}.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": threshold}}))
    engine = {"deepspeed": str(path)}
    cells = [cell(layout, engine, tied, layout[0] > 1) for tied in (False, True)]
    ranks = check_cells(references, layout, cells)
    for rank in ranks:
        for trajectory in rank:
            assert (trajectory.resident_elements == 0) == (threshold == 0)


@pytest.mark.parametrize("layout", [(1, 1, 3), (1, 2, 3)], ids=named)
def test_a_data_parallel_size_that_divides_no_weight(references, layout):
    """Three ranks: every engine pads its shards."""
    cells = [cell(layout, engine, tied, train={"global_batch": 6}) for engine in ENGINES for tied in (False, True)]
    check_cells(references, layout, cells)


@pytest.mark.parametrize("layout", [(2, 2, 1), (1, 2, 2)], ids=named)
def test_optimizer_offload(references, tmp_path, layout):
    cells = []
    for stage in (1, 2, 3):
        path = tmp_path / f"offload_{stage}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}))
        cells += [cell(layout, {"deepspeed": str(path)}, tied, layout[0] > 1) for tied in (False, True)]
    check_cells(references, layout, cells)


def test_the_deepspeed_files_in_the_repository(references):
    layout = (1, 2, 2)
    files = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
    assert len(files) >= 4
    check_cells(references, layout, [cell(layout, {"deepspeed": str(file)}, tied=True) for file in files])


@pytest.mark.parametrize("layout", [(1, 1, 2), (2, 1, 1), (1, 2, 2), (2, 2, 1)], ids=named)
def test_bf16(references, layout):
    """Engines round the same values in one layout; another layout sums other partial products in bf16."""
    bf16 = {"precision": "bf16"}
    cells = [cell(layout, engine, tied, layout[0] > 1, train=bf16) for engine in ENGINES[1:] for tied in (False, True)]
    ranks = check_cells(references, layout, cells, BF16_TOLERANCE)
    exact = references.of([dataclasses.replace(c, train=dataclasses.replace(c.train, precision="fp32")) for c in cells])
    assert all(rounded.losses != full.losses for rounded, full in zip(ranks[0], exact, strict=True))
    assert_parity(layout, cells, ranks, exact, 1e-2)


def test_the_same_run_twice_is_bit_equal():
    layout = (2, 2, 1)
    cells = [cell(layout, {"zero": 3}, True, True)] * 2
    first, second = run_ranks(run_variants, 4, cells, deadline=deadline(cells))[0]
    assert first == second
