"""Whole-model coordinates: every element of the model is held, counted once, and initialised alike in every layout."""

import math

import pytest
import torch

from card_scale.engine.state_keys import WEIGHT
from card_scale.model.initialization import initial_weight
from tests.layouts.processes import run_ranks
from tests.layouts.test_parity import cell
from tests.layouts.trajectory import VOCABULARY, engine_of, form_groups


def held_weights(config):
    """Return (place, float32 value) of each weight of this rank."""
    form_groups(config)
    engine = engine_of(config)
    return [(where, engine.full_state(parameter, WEIGHT).clone()) for parameter, where in engine.weights()]


CELLS = [
    ((1, 1, 1), {"zero": 0}, False, {}),
    ((1, 1, 1), {"zero": 0}, True, {}),
    ((1, 1, 2), {"zero": 1}, False, {}),
    ((2, 1, 1), {"engine": "fsdp2"}, True, {}),
    ((2, 2, 1), {"zero": 3}, True, {"sequence": True}),
    ((2, 2, 1), {"engine": "fsdp2"}, False, {}),
    ((1, 2, 1), {"zero": 2}, True, {"virtual_pipeline": 2}),
]


@pytest.mark.parametrize("layout, engine, tied, parallel", CELLS, ids=lambda value: str(value).replace(" ", ""))
def test_the_slices_make_the_whole_initial_model(layout, engine, tied, parallel):
    config = cell(layout, engine, tied, parallel=parallel)
    ranks = run_ranks(held_weights, math.prod(layout), config)
    wholes: dict[str, torch.Tensor] = {}
    counts: dict[str, torch.Tensor] = {}
    for weights in ranks:
        for where, value in weights:
            whole = wholes.setdefault(where.name, torch.zeros(where.global_shape))
            count = counts.setdefault(where.name, torch.zeros(where.global_shape))
            expected = initial_weight(where.name, where.global_shape, config.run.seed, config.model.layers)
            assert torch.equal(value, where.select(expected)), where.name
            for piece in where.slices:
                target = [slice(None)] * value.dim()
                target[piece.dimension] = piece.whole
                source = [slice(None)] * value.dim()
                source[piece.dimension] = piece.local
                whole[tuple(target)] = value[tuple(source)]
                count[tuple(target)] += where.is_primary
    hidden, ffn, padded = config.model.hidden, config.model.ffn, VOCABULARY.padded
    shapes = {"embedding.weight": (padded, hidden), "final_norm.weight": (hidden,)}
    if not tied:
        shapes["head.weight"] = (padded, hidden)
    for index in range(config.model.layers):
        shapes |= {
            f"layers.{index}.attention_norm.weight": (hidden,),
            f"layers.{index}.attention.linear_qkv.weight": (3 * hidden, hidden),
            f"layers.{index}.attention.linear_proj.weight": (hidden, hidden),
            f"layers.{index}.mlp_norm.weight": (hidden,),
            f"layers.{index}.mlp.linear_fc1.weight": (2 * ffn, hidden),
            f"layers.{index}.mlp.linear_fc2.weight": (hidden, ffn),
        }
    assert {name: tuple(whole.shape) for name, whole in wholes.items()} == shapes
    for name, whole in wholes.items():
        expected = initial_weight(name, tuple(whole.shape), config.run.seed, config.model.layers)
        assert torch.equal(whole, expected), name
        # One copy in each replica of the model; every data-parallel rank holds its replica's in full.
        assert (counts[name] == layout[2]).all(), name
