"""The floors of the package: imports go down, light floors stay light, files and functions stay short."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.laws.test_imports import MODULES, loaded_of

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "card_scale"

LONGEST_FILE, LONGEST_FUNCTION = 400, 60

MAY_BE_LONG = {
    "card_scale/train.py:train": "the order of a run's start, to be read from top to bottom",
    "card_scale/train.py:go_on": "the algorithm, to be read from top to bottom",
}
"""Functions above LONGEST_FUNCTION, each with the reason."""

TRAINING_LIBRARIES = ("torch", "megatron", "deepspeed")
PROCESSES = ("torch.distributed", "megatron", "deepspeed")
FREE_OF = {
    "laws": TRAINING_LIBRARIES,
    "corpus": TRAINING_LIBRARIES,
    "objectives": PROCESSES,
    "data": PROCESSES,
    "generation": ("megatron", "deepspeed"),
    "checkpoint/reader.py": ("torch.distributed", "megatron"),
    "checkpoint/format.py": ("torch.distributed", "megatron"),
}
"""Libraries that no file of a folder, or that one file, may import."""


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("architecture_picture", ROOT / "tools/architecture_picture.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


architecture = load_tool()


def going_up(path: Path) -> list[str]:
    """Return the imports of a file of the package that do not go down."""
    upper = architecture.floor_of_file(path)
    found = []
    for item in architecture.imports(path):
        lower = architecture.floor_of_module(item.module)
        if lower not in (None, upper) and architecture.LEVEL_OF[lower] <= architecture.LEVEL_OF[upper]:
            found.append(f"{path.relative_to(ROOT)}:{item.line}: {upper} imports {lower} ({item.module})")
    return found


def imported_of(path: Path, libraries: tuple[str, ...]) -> list[str]:
    """Return where a file imports one of the libraries, or reaches one as an attribute (``torch.distributed``)."""
    names = [(item.line, item.module) for item in architecture.imports(path)]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            names.append((node.lineno, ast.unparse(node)))
    return [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for line, name in names
        if any(f"{name}.".startswith(f"{library}.") for library in libraries)
    ]


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the qualified name and the number of lines of every function in a tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not isinstance(child, ast.ClassDef):
                yield prefix + child.name, child.end_lineno - child.lineno + 1
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def sources() -> list[Path]:
    return [path for folder in ("card_scale", "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a function that writes a file into a package with the real one's floors."""
    for name in architecture.FLOORS:
        (tmp_path / "card_scale" / name).mkdir(parents=True)
    (tmp_path / "card_scale/errors.py").touch()
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)

    def write(name: str, source: str) -> Path:
        path = tmp_path / "card_scale" / name
        path.write_text(source)
        return path

    return write


def test_every_folder_is_a_floor_and_every_floor_a_folder():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders | {"train", "root"} == set(architecture.FLOORS)


def test_no_import_goes_up_or_to_a_floor_beside():
    assert [line for path in architecture.files() for line in going_up(path)] == []


@pytest.mark.parametrize(
    "name, source, found",
    [
        ("model/a.py", "import card_scale.engine.base", "card_scale/model/a.py:1: model imports engine"),
        ("model/a.py", "\nfrom card_scale import training", "card_scale/model/a.py:2: model imports training"),
        ("model/a.py", "def f():\n    from card_scale.cost.memory import x", "a.py:2: model imports cost"),
        ("data/a.py", "from ..objectives.base import Objective", "data imports objectives"),
        ("data/a.py", "from .. import objectives", "data imports objectives"),
        ("data/a.py", "from card_scale import __version__", "data imports train"),
        ("errors.py", "from card_scale.laws import table", "errors.py:1: root imports laws"),
        ("studies/a.py", "import card_scale.benchmark.clock", "studies imports benchmark"),
        ("benchmark/a.py", "from card_scale.studies.plan import plan", "benchmark imports studies"),
        ("objectives/a.py", 'X = {"x": "card_scale.model.gpt:GPT"}', "objectives imports model"),
        ("data/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import card_scale.model", "data imports model"),
    ],
)
def test_an_import_that_goes_up_is_found(written, name, source, found):
    (line,) = going_up(written(name, source))
    assert found in line


@pytest.mark.parametrize(
    "source",
    [
        "import card_scale.data.order",
        "from card_scale.errors import DataError",
        "from . import selection",
        "import torch, numpy",
        "if TYPE_CHECKING:\n    from card_scale.engine.base import ShardingEngine",
        "if typing.TYPE_CHECKING:\n    from card_scale.engine.base import ShardingEngine",
        'COMMAND = ["-m", "card_scale.train"]',
    ],
)
def test_an_import_that_goes_down_is_not(written, source):
    assert going_up(written("model/a.py", source)) == []


@pytest.mark.parametrize("place, libraries", FREE_OF.items())
def test_light_floors_import_nothing_heavy(place, libraries):
    path = PACKAGE / place
    checked = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    assert checked
    assert [line for file in checked for line in imported_of(file, libraries)] == []


@pytest.mark.parametrize(
    "source",
    ["import torch.distributed as dist", "from torch import distributed", "import torch\ntorch.distributed.x()"],
)
def test_a_heavy_import_is_found_in_every_spelling(written, source):
    assert imported_of(written("data/a.py", source), PROCESSES)
    assert not imported_of(written("data/a.py", "import torch\nimport torch.nn"), PROCESSES)


def test_laws_and_plans_load_no_torch():
    assert loaded_of([*MODULES, "card_scale.studies.plan"], ["torch", "megatron", "deepspeed"]) == []


def test_no_file_is_long():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_no_function_is_long_but_those_with_a_reason():
    long = {
        f"{path.relative_to(ROOT)}:{name}": lines
        for path in sources()
        for name, lines in functions(ast.parse(path.read_text(encoding="utf-8")))
        if lines > LONGEST_FUNCTION
    }
    assert {name: lines for name, lines in long.items() if name not in MAY_BE_LONG} == {}
    assert set(MAY_BE_LONG) <= set(long), "no longer above the limit: take it off the list"


def test_the_picture_is_current():
    picture = ROOT / "docs/architecture.svg"
    assert picture.read_text(encoding="utf-8") == architecture.picture(), "run: python tools/architecture_picture.py"


def test_the_page_lists_the_floors_from_the_top_down():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = page.partition("\n## The floors\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(architecture.FLOORS)
