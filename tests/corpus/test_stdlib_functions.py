"""tools/stdlib_functions.py: which functions of a module become documents."""

import importlib.util
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools/stdlib_functions.py"


def functions(source: str) -> set[str]:
    spec = importlib.util.spec_from_file_location("stdlib_functions", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.functions(source)


def test_every_function_is_a_document_nested_ones_too():
    source = (
        "x = 1\nclass A:\n    def f(self):\n        def g():\n            return 2\n        return g\n\ndef h(): pass\n"
    )
    inner = "        def g():\n            return 2"
    assert functions(source) == {f"    def f(self):\n{inner}\n        return g", inner, "def h(): pass"}


def test_what_does_not_parse_has_none():
    assert functions("def f(:\n") == set()
    assert functions("def f(): pass\n\0") == set()
