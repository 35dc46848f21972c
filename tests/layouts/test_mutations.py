"""The parity suite proves itself: each fault of mutations.py makes the comparison fail, and nothing else does."""

import math
from typing import NamedTuple

import pytest

from card_scale.config import Config
from tests.layouts import armd_mutations
from tests.layouts import mutations as faults
from tests.layouts.mutations import Mutation, run_mutated
from tests.layouts.parity import deadline, deviations, label
from tests.layouts.processes import run_ranks
from tests.layouts.test_parity import ARMD, BD3LM, CLIP_ABOVE_EVERY_NORM, ENGINES, MDLM, cell, named

ZERO0, ZERO1, ZERO2, ZERO3, FSDP2 = ENGINES


class Case(NamedTuple):
    mutation: Mutation
    engines: list[dict]
    symptoms: tuple[str, ...]
    """Where it must show."""
    cell: dict = {}  # noqa: RUF012 - never changed
    """Keywords of :func:`tests.layouts.test_parity.cell`."""


CASES = {
    (1, 1, 2): [
        Case(faults.every_gradient_is_doubled, ENGINES, ("norms",)),
        Case(faults.one_weight_has_a_doubled_gradient, ENGINES, ("norms",)),
        Case(faults.noise_differs_by_data_rank, [ZERO3, FSDP2], ("losses",)),
        Case(faults.weights_are_shifted_by_one_position, [ZERO3, FSDP2], ("losses",)),
        Case(faults.normaliser_is_the_ranks_own, [ZERO3, FSDP2], ("losses",)),
        Case(faults.gradients_are_averaged_over_data_ranks, [ZERO3, FSDP2], ("norms",)),
        # Adam forgives a factor common to all weights, so the moments must show what losses hardly do.
        Case(faults.clipping_is_left_out, [ZERO0, FSDP2], ("final exp_avg",)),
        Case(
            faults.clipping_enlarges_small_gradients,
            [ZERO0, FSDP2],
            ("final exp_avg",),
            {"optimizer": CLIP_ABOVE_EVERY_NORM},
        ),
        Case(faults.the_average_lags_one_update, [ZERO2, ZERO3, FSDP2], ("final ema",), {"optimizer": {"ema": 0.8}}),
        Case(faults.gathered_weights_outlive_the_update, [FSDP2], ("losses",)),
        *(
            Case(fault, [engine], ("losses",), {"objective": objective})
            for fault in (
                faults.noise_differs_by_data_rank,
                faults.noise_strata_are_of_the_ranks_own_places,
                faults.noise_is_stratified_over_the_ranks_samples,
                faults.normaliser_is_the_ranks_own,
                faults.normaliser_counts_masked_tokens,
            )
            for engine, objective in ((ZERO2, MDLM), (FSDP2, BD3LM))
        ),
    ],
    (1, 2, 1): [
        Case(faults.tied_gradients_are_not_summed, ENGINES, ("norms", "tied copies differ"), {"tied": True}),
        Case(faults.every_replica_is_counted, ENGINES, ("norms",), {"tied": True}),
        Case(faults.noise_differs_by_stage, [ZERO3], ("losses",)),
        Case(faults.a_stage_keeps_its_first_input, [FSDP2], ("losses",)),
        Case(faults.dropout_counts_layers_from_the_stages_own, [FSDP2], ("losses",), {"model": {"dropout": 0.1}}),
        Case(faults.noise_differs_by_stage, [ZERO1], ("losses",), {"objective": MDLM}),
        Case(faults.noise_differs_by_stage, [ZERO1], ("losses",), {"objective": BD3LM}),
        Case(faults.the_clean_half_has_positions_of_its_own, [ZERO1], ("losses",), {"objective": BD3LM}),
        *(
            Case(fault, [ZERO1], ("losses",), {"objective": BD3LM, "model": {"attention_backend": backend}})
            for fault in (faults.noisy_blocks_see_their_own_clean_tokens, faults.noisy_blocks_see_earlier_noisy_ones)
            for backend in ("split", "dense")
        ),
    ],
    (2, 1, 1): [
        Case(faults.every_replica_is_counted, ENGINES, ("norms",)),
        Case(faults.norm_weights_are_not_counted, [ZERO2, FSDP2], ("norms",)),
        Case(faults.norm_gradients_stay_on_their_part_of_the_sequence, [ZERO1, FSDP2], ("norms",), {"sequence": True}),
        Case(faults.noise_differs_by_tensor_rank, [ZERO0], ("losses",)),
        Case(faults.gated_weights_are_split_as_one, [ZERO3, FSDP2], ("losses",)),
        Case(
            faults.dropout_counts_positions_from_the_ranks_own,
            [ZERO0],
            ("losses",),
            {"sequence": True, "model": {"dropout": 0.1}},
        ),
        Case(faults.noise_differs_by_tensor_rank, [ZERO1], ("losses",), {"objective": MDLM}),
        *(
            Case(fault, [ZERO1, FSDP2], symptoms, {"objective": BD3LM, "sequence": True})
            for fault, symptoms in (
                (faults.the_noisy_halfs_gradient_is_doubled, ("norms",)),
                (faults.the_noisy_halfs_gradient_is_lost, ("norms",)),
                (faults.the_last_layer_keeps_the_first_half_of_each_rank, ("losses",)),
            )
        ),
        Case(
            faults.dropout_of_the_last_layer_counts_all_positions,
            [ZERO1],
            ("losses",),
            {"objective": BD3LM, "sequence": True, "model": {"dropout": 0.1}},
        ),
    ],
}
BEGINNING = ARMD | {"ar_steps": 0, "permute_steps": 2}
CASES_OF_ARMD = {
    (1, 1, 2): [
        Case(faults.noise_differs_by_data_rank, [ZERO2], ("losses",), {"objective": ARMD}),
        Case(armd_mutations.tokens_begin_to_move_at_another_update, [FSDP2], ("losses",), {"objective": BEGINNING}),
    ],
    (1, 2, 1): [
        *(
            Case(
                armd_mutations.queries_see_their_own_block,
                [ZERO1],
                ("losses",),
                {"objective": objective, "model": model},
            )
            for objective, model in (
                (ARMD, {"attention_backend": "dense"}),
                (ARMD | {"block": 4}, {"attention_backend": "split"}),
            )
        ),
        Case(armd_mutations.prefix_aggregation_is_off_by_one, [ZERO1], ("losses",), {"objective": ARMD}),
        Case(armd_mutations.streams_are_swapped_at_a_stage_border, [FSDP2], ("losses",), {"objective": ARMD}),
        Case(armd_mutations.positions_are_ranks_in_the_order, [ZERO2], ("losses",), {"objective": ARMD}),
        Case(faults.noise_differs_by_stage, [ZERO0], ("losses",), {"objective": ARMD}),
    ],
    (2, 1, 1): [
        Case(faults.noise_differs_by_tensor_rank, [ZERO1], ("losses",), {"objective": ARMD}),
        *(
            Case(fault, [ZERO1, FSDP2], ("norms",), {"objective": ARMD, "sequence": True})
            for fault in (
                armd_mutations.the_aggregations_gradient_is_summed_over_equal_copies,
                faults.the_noisy_halfs_gradient_is_lost,
            )
        ),
    ],
    # The border lies behind the last layer of two streams only where there are more stages.
    (1, 4, 1): [
        Case(
            armd_mutations.stages_keep_the_stream_that_the_layers_have_left, [ZERO1], ("losses",), {"objective": ARMD}
        ),
    ],
}
INTERLEAVED = {
    (1, 2, 1): [
        Case(
            faults.chunks_are_numbered_stage_by_stage,
            [ZERO2, FSDP2],
            ("losses",),
            {"parallel": {"virtual_pipeline": 2}},
        ),
    ],
}


@pytest.mark.parametrize(
    "layout, cases",
    [*CASES.items(), *CASES_OF_ARMD.items(), *INTERLEAVED.items()],
    ids=[
        *map(named, CASES),
        *(f"{named(layout)} armd" for layout in CASES_OF_ARMD),
        *(f"{named(layout)} interleaved" for layout in INTERLEAVED),
    ],
)
def test_every_fault_is_noticed(references, layout, cases):
    """The faults of a layout run in one set of ranks, between runs without a fault that must pass."""
    cells: list[tuple[Case | None, Config]] = []
    for case in cases:
        for engine in case.engines:
            config = cell(layout, engine, **case.cell)
            cells += [(None, config)] * (not any(config == known for _, known in cells)) + [(case, config)]
    cells += [(None, config) for config in dict.fromkeys(config for _, config in cells)][-2:]
    configs = [config for _, config in cells]
    expected = references.of(configs)
    mutated = [(case.mutation if case else None, config) for case, config in cells]
    ranks = run_ranks(run_mutated, math.prod(layout), mutated, deadline=deadline(configs))
    wrong = []
    for index, (case, config) in enumerate(cells):
        found = deviations(config, [rank[index] for rank in ranks], expected[index])
        if case is None and found:
            wrong.append(f"{label(config)} without a fault: {'; '.join(found)}")
        if case is not None and not all(symptom in " ".join(found) for symptom in case.symptoms):
            wrong.append(f"{label(config)}, {case.mutation.__name__}: {'; '.join(found) or 'not noticed'}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("layout", [(1, 1, 2), (1, 2, 1)], ids=named)
def test_a_gradient_that_is_not_finite_on_one_rank_is_seen_by_all(layout):
    step = {"steps": 1}
    configs = [cell(layout, engine, train=step) for engine in ENGINES]
    configs += [cell(layout, engine, train={**step, "precision": "bf16"}) for engine in ENGINES[1:]]
    ranks = run_ranks(faults.norms_with_a_gradient_that_is_not_finite, math.prod(layout), configs)
    for rank in ranks:
        for config, norms in zip(configs, rank, strict=True):
            assert math.isnan(norms[0]), label(config)


@pytest.mark.parametrize("engine", [ZERO2, ZERO3], ids=["zero2", "zero3"])
def test_without_the_reset_of_its_hooks_deepspeed_fails(engine):
    """1F1B's cool-down runs backward passes in a row."""
    config = cell((1, 2, 1), engine)
    with pytest.raises(AssertionError, match="rank 0: Traceback"):
        run_ranks(run_mutated, 2, [(faults.hooks_are_not_reset_between_backward_passes, config)])


def test_stages_that_expect_half_of_the_positions_fail():
    """Block diffusion sends 2L positions from stage to stage; gloo aborts a rank that expects fewer."""
    config = cell((1, 2, 1), ZERO1, objective=BD3LM)
    with pytest.raises(AssertionError, match="rank 1: died without a word"):
        run_ranks(run_mutated, 2, [(faults.stages_expect_half_of_the_positions, config)], deadline=20)
