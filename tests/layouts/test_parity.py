"""Layout parity: any layout, engine and schedule trains what one rank trains, at every step."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

from card_scale.config import Config
from card_scale.model.cross_entropy import selection
from card_scale.model.head import LanguageModelHead
from tests.layouts.parity import assert_parity, check_cells, deadline
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import STAGE_LAYERS, Trajectory, run_variants, small_config

LAYOUTS = [(2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2), (2, 2, 1), (2, 1, 2)]
"""(tensor, pipeline, data) sizes, every pair of them: test_all_dimensions_at_once has the three together."""

ENGINES = [{"zero": 0}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"engine": "fsdp2"}]

BF16_TOLERANCE = 2e-3
"""Layouts round other partial sums to the 8 bits of bf16 (4e-3). Measured: losses 5e-5, norms 6e-4, moments 9e-4."""

BF16_MASKED_TOLERANCE = 5e-3
"""The same for MDLM and BD3-LM, whose loss hangs on fewer tokens. Measured: norms 2e-3, moments 3e-3."""

BF16_ENGINE_TOLERANCE = 1e-3
"""Engines in one layout round the same values, but accumulate gradients in another order. Measured: 4e-4."""


MDLM = {"name": "mdlm"}
BD3LM = {"name": "bd3lm", "block": 4}
ARMD = {"name": "armd", "permuted": 8, "ar_steps": 0, "permute_steps": 0}
"""The objectives whose cells stand beside CARD's; their own matrices are test_masked_diffusion_parity.py and
test_armd_parity.py."""


LLAMA = {"kv_heads": 2, "rotary_base": 300.0, "norm_epsilon": 1e-3}
"""Grouped keys and values, and the other two in which Llamas differ."""

CLIP_ABOVE_EVERY_NORM = {"clip": 1e3}


def named(layout: tuple[int, int, int]) -> str:
    return "x".join(map(str, layout))


def rows(layout: tuple[int, int, int]) -> int:
    """Return the rows of a micro-batch: two make four micro-batches, as 1F1B's phases need, two where data is parallel.

    Without a pipeline two micro-batches show that gradients add up.
    """
    return 4 if layout[1:] == (1, 1) else 2


def cell(layout: tuple[int, int, int], engine: dict, tied: bool = False, sequence: bool = False, **changes) -> Config:
    """Return the configuration of one cell; keywords ``group=dict(key=value)`` change keys."""
    tensor, pipeline, _ = layout
    parallel = {"tensor": tensor, "pipeline": pipeline, "sequence": sequence, **engine, **changes.pop("parallel", {})}
    layers = STAGE_LAYERS if pipeline == 1 else 4
    model = {"layers": layers, "tie_embeddings": tied, **changes.pop("model", {})}
    train = {"micro_batch": rows(layout), **changes.pop("train", {})}
    return small_config(parallel=parallel, model=model, train=train, **changes)


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_every_engine_equals_one_rank(references, layout):
    """Tied or not, with or without sequence parallelism: all pairs in each layout, all triples over the layouts."""
    cells = [
        cell(layout, engine, tied, layout[0] > 1 and tied ^ (number + LAYOUTS.index(layout)) % 2 == 1)
        for tied in (False, True)
        for number, engine in enumerate(ENGINES)
    ]
    ranks = check_cells(references, layout, cells)
    assert_sharded(layout, cells, ranks)


def assert_sharded(layout: tuple[int, int, int], cells: list[Config], ranks: list[list[Trajectory]]) -> None:
    """Raise AssertionError where ranks hold more than their part: equality lets an engine pass that shards nothing."""
    for index, config in enumerate(cells):
        whole = sum(rank[0].master_elements for rank in ranks)  # zero0, untied
        held = sum(rank[index].master_elements for rank in ranks)
        copies = layout[2] if config.parallel.zero == 0 else 1
        tied_saving = config.model.tie_embeddings and layout[1] == 1
        if not tied_saving:
            assert held == pytest.approx(whole / layout[2] * copies, rel=0.02), config.parallel
        if config.parallel.zero == 3:
            assert max(rank[index].resident_elements for rank in ranks) < 0.05 * whole / len(ranks)


def test_all_dimensions_at_once(references):
    layout = (2, 2, 2)
    cells = [cell(layout, engine, number % 2 == 0, number % 3 > 0) for number, engine in enumerate(ENGINES, start=1)]
    busy = {"model": {"dropout": 0.1}, "parallel": {"recompute": "full"}, "train": {"micro_batch": 1}}
    cells += [
        cell(layout, ENGINES[number], tied, not tied, objective=objective, **busy)
        for number, tied, objective in (
            (3, True, {"name": "card"}),
            (2, False, MDLM),
            (3, False, BD3LM),
            (4, True, BD3LM),
            (1, True, ARMD),
            (4, False, ARMD),
        )
    ]
    assert_sharded(layout, cells, check_cells(references, layout, cells))


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if math.prod(layout) > 2], ids=named)
def test_dropout_recomputation_smaller_micro_batches_and_other_llamas(references, layout):
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
            cell(layout, zero3, False, sequence, train={"micro_batch": 1}, optimizer={"ema": 0.8}),
            cell(layout, fsdp2, False, sequence, train={"micro_batch": 1}, optimizer={"ema": 0.8}),
            cell(layout, zero3, True, sequence, model=LLAMA),
            cell(layout, fsdp2, False, sequence, model=LLAMA, optimizer=CLIP_ABOVE_EVERY_NORM),
            cell(layout, {"zero": 0}, False, sequence, objective=BD3LM, model=LLAMA, optimizer=CLIP_ABOVE_EVERY_NORM),
        ],
    )


def test_without_micro_batches(references):
    """And with layers that are neither the first nor the last."""
    layout = (1, 1, 2)
    cells = [cell(layout, engine, train={"micro_batch": 4}, model={"layers": 4}) for engine in ENGINES]
    check_cells(references, layout, cells)


def run_in_parts(configs):
    """Return the trajectories with logits held one position at a time, and how often the head scored."""
    selection.PART_ELEMENTS = 1
    scored = []
    score = LanguageModelHead._score
    LanguageModelHead._score = lambda head, *arguments: scored.append(head) or score(head, *arguments)
    return run_variants(configs), len(scored)


@pytest.mark.parametrize("layout", [(1, 1, 1), (2, 1, 1), (2, 2, 1)], ids=named)
def test_the_loss_of_a_part_of_the_positions_at_a_time(references, layout):
    """Head and loss in parts, computed again in the backward pass; with sequence parallelism and without."""
    tensor = layout[0] > 1
    cells = [
        cell(layout, {"zero": 3}, True, tensor, model={"loss_backend": "chunked"}),
        cell(layout, {"zero": 1}, False, False, model={"loss_backend": "chunked"}),
        cell(layout, {"engine": "fsdp2"}, False, tensor, model={"loss_backend": "chunked"}),
    ]
    ranks = run_ranks(run_in_parts, math.prod(layout), cells, deadline=deadline(cells))
    assert_parity(layout, cells, [found for found, _ in ranks], references.of(cells))
    assert max(scored for _, scored in ranks) > 10 * len(cells)


ABLATIONS = [
    {"name": "ar"},
    {"masking": "uniform"},
    {"masking": "spans", "span_rate": 0.2},
    {"reweight": False, "masked_weight": 3.0},
    {"tail_factor": 2.5},
    {"decay": 0.1, "beta": 2.0},
    {"min_noise": 0.3, "max_noise": 0.6},
]


@pytest.mark.parametrize("layout", [(1, 2, 2), (2, 1, 2)], ids=named)
def test_ar_and_the_ablations_of_card(references, layout):
    engines = [{"zero": 3}, {"engine": "fsdp2"}]
    cells = [
        cell(layout, engines[(index + layout[0]) % 2], sequence=layout[0] > 1, objective=objective)
        for index, objective in enumerate(ABLATIONS)
    ]
    check_cells(references, layout, cells)


@pytest.mark.parametrize("layout", [(1, 2, 1), (1, 2, 2), (2, 2, 1)], ids=named)
def test_interleaved_pipeline(references, layout):
    engines = ({"zero": 0}, {"zero": 1}, {"zero": 2}, {"engine": "fsdp2"})
    cells = [
        cell(layout, engine, tied, sequence=layout[0] > 1, parallel={"virtual_pipeline": 2}, model={"dropout": dropout})
        for engine in engines
        for tied, dropout in ((False, 0.1), (True, 0.0))
    ]
    cells += [
        cell(
            layout,
            engine,
            number % 2 == 1,
            sequence=layout[0] > 1,
            objective=(MDLM, BD3LM)[(number + layout[2]) % 2],
            parallel={"virtual_pipeline": 2, "recompute": "full" if number > 1 else "none"},
            model={"dropout": 0.1},
        )
        for number, engine in enumerate(engines)
    ]
    check_cells(references, layout, cells)


def test_four_stages(references):
    layout = (1, 4, 1)
    cells = [cell(layout, engine, tied) for engine in ENGINES for tied in (False, True)]
    check_cells(references, layout, [*cells, cell(layout, {"zero": 3}, model={"dropout": 0.1})])


RELEASED = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
KEPT = {"stage3_param_persistence_threshold": 10**9}
SPLIT = {"sub_group_size": 5000}  # stages then hold different numbers of sub-groups


@pytest.mark.parametrize("settings", [RELEASED, KEPT, SPLIT], ids=["released", "kept", "split"])
@pytest.mark.parametrize("layout", [(1, 2, 2), (2, 2, 1)], ids=named)
def test_zero3_at_the_extremes_of_its_settings(references, tmp_path, layout, settings):
    """The automatic values lie between: at these sizes norms stay gathered, matrices do not, one update suffices."""
    path = tmp_path / "zero3.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, **settings}}))
    cells = [cell(layout, {"deepspeed": str(path)}, tied, layout[0] > 1) for tied in (False, True)]
    for rank in check_cells(references, layout, cells):
        for trajectory in rank:
            assert (trajectory.resident_elements == 0) == (settings is RELEASED)


@pytest.mark.parametrize("layout", [(1, 1, 3), (1, 2, 3)], ids=named)
def test_a_data_parallel_size_that_divides_no_weight(references, layout):
    """Three ranks: every engine pads its shards."""
    cells = [cell(layout, engine, layout[1] > 1, train={"global_batch": 6, "micro_batch": 1}) for engine in ENGINES]
    check_cells(references, layout, cells)


@pytest.mark.parametrize("layout", [(2, 2, 1), (1, 2, 2)], ids=named)
def test_optimizer_offload(references, tmp_path, layout):
    cells = []
    for stage in (1, 2, 3):
        path = tmp_path / f"offload_{stage}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage, "offload_optimizer": {"device": "cpu"}}}))
        cells += [cell(layout, {"deepspeed": str(path)}, tied, layout[0] > 1) for tied in (False, True)]
    check_cells(references, layout, cells)


def test_other_settings_of_deepspeed(references, tmp_path):
    layout = (1, 2, 2)
    small = {"reduce_bucket_size": 100, "allgather_bucket_size": 100}
    other = {"overlap_comm": True, "contiguous_gradients": False, "reduce_scatter": False}
    parameters_too = {"offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}}
    cells = []
    for stage, settings in ((1, small), (2, small), (2, other), (3, {**small, **other}), (3, parameters_too)):
        path = tmp_path / f"{len(cells)}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": stage, **settings}}))
        cells.append(cell(layout, {"deepspeed": str(path)}, tied=True))
    check_cells(references, layout, cells)


def test_the_deepspeed_files_in_the_repository(references):
    layout = (1, 2, 2)
    files = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))
    assert len(files) >= 4
    check_cells(references, layout, [cell(layout, {"deepspeed": str(file)}, tied=True) for file in files])


@pytest.mark.parametrize("layout", [(1, 2, 2), (2, 2, 1)], ids=named)
def test_bf16(references, layout):
    objectives = ({"name": "card"}, MDLM, BD3LM)
    cells = [
        cell(layout, engine, layout[1] > 1, layout[0] > 1, train={"precision": "bf16"}, objective=objective)
        for objective in objectives
        for engine in ENGINES[1:]
    ]
    ranks = check_cells(references, layout, cells, BF16_MASKED_TOLERANCE)
    engines = len(ENGINES[1:])
    card = cells[:engines]
    assert_parity(layout, card, [rank[:engines] for rank in ranks], references.of(card), BF16_TOLERANCE)
    first = [ranks[0][index - index % engines] for index in range(len(cells))]
    assert_parity(layout, cells, ranks, first, BF16_ENGINE_TOLERANCE)
    exact = references.of([dataclasses.replace(c, train=dataclasses.replace(c.train, precision="fp32")) for c in cells])
    assert_parity(layout, cells, ranks, exact, 1e-2)
    for index in range(len(cells)):
        assert ranks[0][index].losses != exact[index].losses


def test_the_same_run_twice_is_bit_equal():
    layout = (2, 2, 1)
    cells = [cell(layout, {"zero": 3}, True, True)] * 2
    first, second = run_ranks(run_variants, 4, cells, deadline=deadline(cells))[0]
    assert first == second
