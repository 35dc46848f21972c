"""No file is read in a way that could run code out of it: read off the sources, wherever and however it is spelt."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

MODULES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle")
"""Whatever they are asked for, they unpickle."""

NAMES = (
    *("eval", "exec", "__import__", "builtins.eval", "builtins.exec"),
    *("torch.load", "torch.serialization", "torch.jit.load", "torch.hub", "torch.distributed.checkpoint"),
    *("yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all", "yaml.load_all"),
    *("yaml.Loader", "yaml.CLoader", "yaml.UnsafeLoader", "yaml.FullLoader"),
)
"""Not even by another name: ``read = torch.load``."""

METHODS = ("read_pickle", "load_checkpoint", "extract", "extractall", "unpack_archive")
"""Of any object. DeepSpeed's own checkpoints are pickles; unpacked archives write where their members say."""

KEYWORDS = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True}
"""The only value that each may be given."""


def aliases(tree: ast.AST) -> dict[str, str]:
    """Return what each imported name stands for in full."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                first = item.name.partition(".")[0]
                found[item.asname or first] = item.name if item.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {item.asname or item.name: f"{node.module}.{item.name}" for item in node.names}
    return found


def full_name(node: ast.AST, known: dict[str, str]) -> str:
    """Return the dotted name of an expression with imports resolved, empty for one that has none."""
    if isinstance(node, ast.Name):
        return known.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (owner := full_name(node.value, known)):
        return f"{owner}.{node.attr}"
    return ""


def safe_loaders(tree: ast.AST, known: dict[str, str]) -> set[str]:
    """Return the names by which a file may give ``yaml.load`` a loader that makes plain values alone."""
    safe = ("yaml.SafeLoader", "yaml.CSafeLoader")
    derived = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and node.bases and all(full_name(b, known) in safe for b in node.bases)
    }
    return {*safe, *derived}


def unsafe(source: str) -> Iterator[str]:
    """Yield what of a file could run code out of a file that it reads, each with its line."""
    tree = ast.parse(source)
    known = aliases(tree)
    loaders = safe_loaders(tree, known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [item.name for item in node.names] if module is None else [f"{module}.{i.name}" for i in node.names]
            found = [name for name in names if f"{name}.".startswith((*(f"{m}." for m in MODULES), *_inside(NAMES)))]
        elif isinstance(node, ast.Name | ast.Attribute):
            name = full_name(node, known)
            is_method = isinstance(node, ast.Attribute) and node.attr in METHODS
            found = [name or node.attr] if is_method or f"{name}.".startswith(_inside(NAMES)) else []
        elif isinstance(node, ast.Call):
            found = [
                f"{keyword.arg}={ast.unparse(keyword.value)}"
                for keyword in node.keywords
                if keyword.arg in KEYWORDS and ast.unparse(keyword.value) != repr(KEYWORDS[keyword.arg])
            ]
            if full_name(node.func, known) == "yaml.load":
                given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "Loader")]
                found += [] if given and full_name(given[0], known) in loaders else ["yaml.load"]
        else:
            found = []
        for what in found:
            yield f"line {node.lineno}: {what}"


def _inside(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)


def sources() -> list[Path]:
    return [path for folder in ("card_scale", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]


def test_nothing_that_is_read_can_run_code():
    assert len(sources()) > 200
    found = {str(path.relative_to(ROOT)): list(unsafe(path.read_text(encoding="utf-8"))) for path in sources()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source, what",
    [
        ("import pickle", "line 1: pickle"),
        ("def f():\n    from pickle import loads", "line 2: pickle.loads"),
        ("import joblib as j", "joblib"),
        ("import torch\nx = torch.load(p, weights_only=True)", "line 2: torch.load"),
        ("import torch as t\nread = t.load", "torch.load"),
        ("from torch import load as read", "torch.load"),
        ("import torch.distributed.checkpoint as dcp", "torch.distributed.checkpoint"),
        ("from torch.distributed import checkpoint", "torch.distributed.checkpoint"),
        ("import yaml\nyaml.load(t)", "yaml.load"),
        ("import yaml\nyaml.load(t, Loader=yaml.FullLoader)", "yaml.load"),
        ("import yaml\nclass A(yaml.Loader): ...\nyaml.load(t, A)", "yaml.load"),
        ("from yaml import load\nload(t, L)", "yaml.load"),
        ("import yaml\nyaml.unsafe_load(t)", "yaml.unsafe_load"),
        ("import numpy as np\nnp.load(p, allow_pickle=True)", "allow_pickle=True"),
        ("import numpy as np\nnp.load(p, allow_pickle=wanted)", "allow_pickle=wanted"),
        ("AutoModel.from_pretrained(p, trust_remote_code=True)", "trust_remote_code=True"),
        ("eval(text)", "eval"),
        ("run = exec", "exec"),
        ("import builtins\nbuiltins.eval(text)", "builtins.eval"),
        ("__import__(name)", "__import__"),
        ("import marshal", "marshal"),
        ("import shelve", "shelve"),
        ("frame = pandas.read_pickle(p)", "read_pickle"),
        ("engine().load_checkpoint(p)", "load_checkpoint"),
        ("archive.extractall(p)", "extractall"),
    ],
)
def test_every_spelling_is_found(source, what):
    found = list(unsafe(source))
    assert found
    assert all(line.startswith("line ") for line in found)
    assert any(what in line for line in found), found


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nmodel.eval()\ntorch.compile(model)",
        "import numpy as np\nnp.load(p)\nnp.load(p, mmap_mode='r', allow_pickle=False)",
        "import yaml\nyaml.safe_load(t)\nyaml.load(t, yaml.SafeLoader)",
        "import yaml\nclass Strict(yaml.SafeLoader): ...\nyaml.load(t, Loader=Strict)",
        "import json\njson.load(f)\nreader.load(p)\nself.exec(x)",
        "import torch.distributed as dist\ndist.broadcast_object_list(x)",
        "archive.extractfile(member)",
    ],
)
def test_what_is_safe_is_not(source):
    assert list(unsafe(source)) == []
