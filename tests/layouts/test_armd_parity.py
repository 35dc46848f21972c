"""Layout parity of ARMD: every layout and engine, and in a covering design all that can stand beside."""

import itertools

import pytest

from card_scale.config import Config
from tests.layouts.parity import check_cells
from tests.layouts.test_masked_diffusion_parity import FACTORS, LAYOUTS, cell_of_row
from tests.layouts.test_parity import ENGINES, LLAMA, cell, named

MOVING = {"permuted": 8, "ar_steps": 0, "permute_steps": 0}
VARIANTS = [
    ("auto", MOVING, {}),
    ("dense", {"permuted": 8, "ar_steps": 1, "permute_steps": 4}, {}),
    ("auto", MOVING | {"block": 4}, LLAMA),
    ("auto", {"permuted": 0, "strides": (1, 2, 4)}, {}),
    ("split", {"permuted": 16, "ar_steps": 0, "permute_steps": 0, "block": 2}, {}),
    ("auto", MOVING, LLAMA),
]
"""Backend, parameters and sizes: moved tokens, their beginning, blocks, strides; other Llamas."""


def cells_of(layout: tuple[int, int, int]) -> list[Config]:
    """Return a cell for every engine, with factors and variants that walk through their tables."""
    place = LAYOUTS.index(layout)
    cells = []
    for number, engine in enumerate(ENGINES):
        backend, parameters, sizes = VARIANTS[(place + number) % len(VARIANTS)]
        row = place + place // 2 + 7 * number + 3
        model = {"attention_backend": backend, **sizes}
        cells.append(cell_of_row(layout, engine, row, objective={"name": "armd", **parameters}, model=model))
    return cells


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_every_engine_equals_one_rank(references, layout):
    check_cells(references, layout, cells_of(layout))


@pytest.mark.parametrize("layout, chunks", [((1, 4, 1), 1), ((1, 2, 1), 2), ((1, 2, 1), 4), ((2, 2, 1), 4)], ids=str)
def test_stages_end_in_either_half(references, layout, chunks):
    """Of eight layers four have two streams: borders lie before, at and behind their end, interleaved ones too."""
    cells = [
        cell(
            layout,
            engine,
            block > 1,
            layout[0] > 1,
            objective={"name": "armd", **MOVING, "block": block},
            model={"layers": 8, "dropout": 0.1},
            parallel={"virtual_pipeline": chunks},
        )
        for engine, block in zip((ENGINES[0], ENGINES[2], ENGINES[4]), (1, 4, 2), strict=True)
    ]
    check_cells(references, layout, cells)


def test_bf16_learns_what_fp32_learns(references):
    layout = (2, 2, 1)
    cells = [
        cell(layout, engine, sequence=True, objective={"name": "armd", **MOVING}, train={"precision": "bf16"})
        for engine in ENGINES[1:]
    ]
    check_cells(references, layout, cells, tolerance=5e-3)


def test_the_design_leaves_no_value_out():
    found = [
        {
            "layout": layout,
            "engine": (config.parallel.engine, config.parallel.zero),
            "variant": (config.model.attention_backend, config.objective, config.model.kv_heads),
            "tied": config.model.tie_embeddings,
            "sequence": config.parallel.sequence,
            "dropout": config.model.dropout > 0,
            "recompute": config.parallel.recompute,
            "small": config.train.micro_batch == 1,
        }
        for layout in LAYOUTS
        for config in cells_of(layout)
    ]
    assert len({row["variant"] for row in found}) == len(VARIANTS)
    for one, other in itertools.product(("layout", "engine", "variant"), FACTORS):
        impossible = 4 if one == "layout" and other in ("sequence", "small") else 0
        pairs = {(row[one], row[other]) for row in found}
        possible = len({row[one] for row in found}) * len({row[other] for row in found})
        assert len(pairs) == possible - impossible, (one, other, possible - len(pairs))
