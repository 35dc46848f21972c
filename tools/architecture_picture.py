"""Draws docs/architecture.svg: the floors of the package, and which floor imports which, read from its imports.

    python tools/architecture_picture.py

The order of the floors stands here and nowhere else; tests/test_floors.py holds every import to it.
"""

import ast
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "card_scale"
PICTURE = ROOT / "docs/architecture.svg"

LEVELS: tuple[dict[str, str], ...] = (
    {"train": "the command: the algorithm, top to bottom"},
    {
        "benchmark": "what a step costs: latency, memory, parts",
        "studies": "many runs: grids, plans, queues, reports",
        "rehearsal": "runs killed and damaged on purpose",
    },
    {
        "training": "one run: update, evaluation, records, stops",
        "generation": "decoding a checkpoint: plain torch, cached",
    },
    {"checkpoint": "weights on disk, independent of the layout"},
    {"engine": "sharding: DeepSpeed ZeRO and FSDP2, schedule"},
    {"cost": "parameters, FLOPs and memory, by formula"},
    {"model": "the GPT of Megatron-core layers, its kernels"},
    {"distributed": "layout, process groups, device"},
    {"config": "one typed tree of keys, checked"},
    {"objectives": "what is hidden, asked and weighted; pure"},
    {"corpus": "datasets out of text: units, duplicates"},
    {"data": "reading: shards, order, samples, loader"},
    {"laws": "scaling laws, their fits and verdicts; no torch"},
    {"root": "errors, files, versions: what all may use"},
)
"""What each floor is, from the top down. Imports go down only; floors of one level do not import each other.

Each is a folder of the package, but two: ``train`` is ``train.py`` and ``__init__.py``, ``root`` the other modules
beside them.
"""

FLOORS = {name: what for level in LEVELS for name, what in level.items()}
LEVEL_OF = {name: number for number, level in enumerate(LEVELS) for name in level}

TARGET = re.compile(rf"({PACKAGE}(?:\.\w+)+):\w+")
"""``module:class``, as the registries name what they import when it is asked for."""


class Import(NamedTuple):
    """A module that a file imports."""

    line: int
    module: str


def imports(path: Path) -> Iterator[Import]:
    """Yield all that a file imports, anywhere in it, but for what only a type checker sees.

    ``from a import b`` yields ``a.b``, which may be a module or a name in one.
    """
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            yield from (Import(node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            target = TARGET.fullmatch(node.value)
            if target:
                yield Import(node.lineno, target[1])


def files() -> list[Path]:
    """Return the package's files."""
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def floor_of_file(path: Path) -> str:
    """Return the floor on which a file of the package stands."""
    first, *rest = path.relative_to(ROOT / PACKAGE).parts
    if rest:
        return first
    return "train" if first in ("train.py", "__init__.py") else "root"


def floor_of_module(module: str) -> str | None:
    """Return the floor of a module of the package, or of a name in one; None for other packages."""
    first, *rest = module.split(".")
    if first != PACKAGE:
        return None
    if rest and (ROOT / PACKAGE / rest[0]).is_dir():
        return rest[0]
    if rest and (ROOT / PACKAGE / f"{rest[0]}.py").is_file():
        return floor_of_file(ROOT / PACKAGE / f"{rest[0]}.py")
    return "train"  # a name of card_scale/__init__.py


def edges() -> set[tuple[str, str]]:
    """Return which floor imports which, without a floor's imports of itself."""
    found = {(floor_of_file(path), floor_of_module(item.module)) for path in files() for item in imports(path)}
    return {(upper, lower) for upper, lower in found if lower is not None and upper != lower}


ROW, GAP, CELL = 30, 6, 26
LEFT, TOP, NAME, BOX = 16, 128, 96, 412
INK, FAINT, PAPER, FILL, MARK = "#1c2733", "#c9d2dc", "#ffffff", "#eef3f8", "#2f6db5"


def draw(floors: dict[str, str], levels: dict[str, int], imported: set[tuple[str, str]]) -> str:
    """Return the picture as SVG: a box a floor, and beside it a row of the matrix of imports."""
    names = list(floors)
    top_of = {name: TOP + ROW * row + GAP * levels[name] for row, name in enumerate(names)}
    matrix = LEFT + BOX + 20
    left_of = {name: matrix + CELL * column for column, name in enumerate(names)}
    width = matrix + CELL * len(names) + 56
    height = top_of[names[-1]] + ROW + 48
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="{INK}">',
        f"<title>The floors of {PACKAGE}, and which imports which</title>",
        f'<rect width="{width}" height="{height}" fill="{PAPER}"/>',
        f'<text x="{LEFT}" y="30" font-size="17" font-weight="bold">The floors of {PACKAGE}</text>',
        f'<text x="{LEFT}" y="52">Imports go down only.</text>',
        f'<text x="{LEFT}" y="70">A mark: the floor of the row imports the floor of the column.</text>',
        f'<text x="{LEFT}" y="88">Two floors in one box do not import each other.</text>',
    ]
    for level in range(max(levels.values()) + 1):
        on_level = [name for name in names if levels[name] == level]
        parts.append(
            f'<rect x="{LEFT}" y="{top_of[on_level[0]]}" width="{BOX}" height="{ROW * len(on_level)}" rx="4" '
            f'fill="{FILL}" stroke="{FAINT}"/>'
        )
    for name in names:
        base = top_of[name] + ROW / 2 + 4.5
        parts.append(f'<text x="{LEFT + 10}" y="{base}" font-weight="bold">{escape(name)}</text>')
        parts.append(f'<text x="{LEFT + 10 + NAME}" y="{base}">{escape(floors[name])}</text>')
        x, y = left_of[name] + CELL / 2 + 4, TOP - 8
        parts.append(f'<text transform="translate({x} {y}) rotate(-55)">{escape(name)}</text>')
    for upper in names:
        for lower in names:
            x, y = left_of[lower], top_of[upper] + (ROW - CELL) / 2
            if upper == lower:
                parts.append(f'<rect x="{x + 2}" y="{y + 2}" width="{CELL - 4}" height="{CELL - 4}" fill="{FAINT}"/>')
            elif (upper, lower) in imported:
                parts.append(
                    f'<circle cx="{x + CELL / 2}" cy="{y + CELL / 2}" r="8" fill="{MARK}">'
                    f"<title>{escape(upper)} imports {escape(lower)}</title></circle>"
                )
            elif levels[upper] < levels[lower]:
                parts.append(f'<circle cx="{x + CELL / 2}" cy="{y + CELL / 2}" r="2" fill="{FAINT}"/>')
    parts.append(
        f'<text x="{LEFT}" y="{height - 16}" font-size="11">Made from the imports by tools/architecture_picture.py; '
        "grey: the floor itself; a dot: allowed, and not used.</text>"
    )
    return "\n".join([*parts, "</svg>", ""])


def picture() -> str:
    """Return docs/architecture.svg as the package now is."""
    return draw(FLOORS, LEVEL_OF, edges())


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"wrote {PICTURE.relative_to(ROOT)}")
