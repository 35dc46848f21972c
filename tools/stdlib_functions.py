#!/usr/bin/env python3
"""Write the functions of Python's standard library as a JSON Lines corpus: many short documents for small studies.

Whole files are long: a subset of 16,000 tokens would be half a dozen of them, and its seed would decide the loss.
"""

import argparse
import ast
import json
import sys
import sysconfig
import warnings
from pathlib import Path

from card_scale.argument_types import positive
from card_scale.cli import run_tool
from card_scale.files import write_atomically


def functions(source: str) -> set[str]:
    """Return the text of every function in a module, nested ones too; none of a module that does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # test files that are wrong on purpose; null bytes
        return set()
    lines = source.splitlines()
    found = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return {"\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in found}


def main() -> None:
    """Collect, sort and write."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Exit codes: 0 done, 2 command line, 4 data.")
    parser.add_argument("output", type=Path, help='file of {"text": ...} lines')
    parser.add_argument("--shortest", type=positive, default=200, metavar="N", help="characters (default: 200)")
    parser.add_argument("--longest", type=positive, default=2000, metavar="N", help="characters (default: 2000)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)
    library = Path(sysconfig.get_paths()["stdlib"])
    texts: set[str] = set()
    for path in library.rglob("*.py"):
        if "site-packages" not in path.relative_to(library).parts:
            texts |= functions(path.read_text(encoding="utf-8", errors="ignore"))
    kept = sorted(text for text in texts if options.shortest <= len(text) <= options.longest)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, "".join(json.dumps({"text": text}) + "\n" for text in kept).encode())
    print(f"written: {options.output}, {len(kept):,} functions of {library}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
