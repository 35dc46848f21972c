"""Layout parity of MDLM and BD3-LM: every layout and engine, and in a covering design all that can stand beside."""

import itertools

import pytest

from card_scale.config import Config
from tests.layouts.parity import check_cells
from tests.layouts.test_parity import ENGINES, cell, named, rows
from tests.layouts.test_parity import LAYOUTS as UP_TO_TWO_DIMENSIONS

LAYOUTS = [*UP_TO_TWO_DIMENSIONS, (1, 4, 1)]

BLOCK_DIFFUSION = [
    ("auto", {"block": 4}),
    ("dense", {"block": 4}),
    ("auto", {"block": 1}),
    ("dense", {"block": 16}),
    ("auto", {"block": 4, "min_mask": 0.3, "max_mask": 0.8}),
    ("auto", {"block": 8, "max_mask": 0.5}),
    ("dense", {"block": 2, "min_mask": 0.55}),
]
"""Backend and parameters of BD3-LM: block sizes up to the length, clipped intervals, and one without weights."""

FACTORS = ("tied", "sequence", "dropout", "recompute", "small")
ROWS = [(a, b, a ^ b, c, a ^ c) for a, b, c in itertools.product((False, True), repeat=3)]
"""Off or on for each factor. Any two columns hold the four pairs of values twice: an orthogonal array."""


def cells_of(layout: tuple[int, int, int]) -> list[Config]:
    """Return both objectives under every engine, with factors and variants that walk through their tables.

    Of the eight rows each objective meets five in a layout and seven under an engine, so every factor is off and on.
    """
    place = LAYOUTS.index(layout)
    cells = []
    for number, engine in enumerate(ENGINES):
        backend, parameters = BLOCK_DIFFUSION[(place + 4 * number) % len(BLOCK_DIFFUSION)]
        for row, attention_backend, objective in (
            (place + number, "auto", {"name": "mdlm"}),
            (place + number + 6, backend, {"name": "bd3lm", **parameters}),
        ):
            model = {"attention_backend": attention_backend}
            cells.append(cell_of_row(layout, engine, row, objective=objective, model=model))
    return cells


def cell_of_row(layout: tuple[int, int, int], engine: dict, row: int, *, objective: dict, model: dict) -> Config:
    """Return a cell with the factors of a row of the array, wherever the layout has them."""
    tied, sequence, dropout, recompute, small = ROWS[row % len(ROWS)]
    return cell(
        layout,
        engine,
        tied,
        sequence and layout[0] > 1,
        objective=objective,
        model={"dropout": 0.1 if dropout else 0.0, **model},
        parallel={"recompute": "full" if recompute else "none"},
        # Where data is parallel: as many micro-batches as elsewhere.
        train={"micro_batch": 1 if small and layout[2] > 1 else rows(layout)},
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=named)
def test_every_engine_equals_one_rank(references, layout):
    check_cells(references, layout, cells_of(layout))


def test_the_design_leaves_no_pair_out():
    found = [
        {
            "layout": layout,
            "engine": (config.parallel.engine, config.parallel.zero),
            "objective": config.objective.name,
            "variant": (config.model.attention_backend, config.objective),
            "tied": config.model.tie_embeddings,
            "sequence": config.parallel.sequence,
            "dropout": config.model.dropout > 0,
            "recompute": config.parallel.recompute,
            "small": config.train.micro_batch == 1,
        }
        for layout in LAYOUTS
        for config in cells_of(layout)
    ]
    assert len({row["variant"] for row in found}) == 1 + len(BLOCK_DIFFUSION)
    impossible = {("layout", "sequence"): 4, ("layout", "small"): 4}  # layouts without tensor or data parallelism
    for one, other in itertools.combinations(("layout", "engine", "objective", *FACTORS), 2):
        pairs = {(row[one], row[other]) for row in found}
        possible = len({row[one] for row in found}) * len({row[other] for row in found})
        assert len(pairs) == possible - impossible.get((one, other), 0), (one, other)
    for factor in ("engine", *FACTORS):
        pairs = {(row["variant"], row[factor]) for row in found}
        assert len(pairs) == (1 + len(BLOCK_DIFFUSION)) * len({row[factor] for row in found}), factor
