"""The page of configuration keys, made from the configuration classes and the objectives themselves."""

import ast
import dataclasses
import inspect
import itertools
from collections.abc import Iterable
from pathlib import Path

from card_scale.config import MEGATRON_ALIASES, Config
from card_scale.objectives import registry


def markdown() -> str:
    """Return docs/configuration.md: every group and key with its type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "Made by `python -m card_scale.config.reference > docs/configuration.md` from `card_scale/config/schema.py`",
        "and the objectives; a test compares the two. A key that is not listed is an error that names the nearest one.",
        "On the command line write `group.key=value`, or one of the Megatron-LM options below.",
    ]
    for group in dataclasses.fields(Config):
        lines += ["", f"## {group.name}", ""]
        lines += _objectives() if group.name == "objective" else _table(group.type, dataclasses.fields(group.type))
    lines += ["", "## Megatron-LM options", "", "| option | key |", "|---|---|"]
    lines += [f"| `--{option}` | `{key}` |" for option, key in MEGATRON_ALIASES.items()]
    return "\n".join(lines) + "\n"


def _objectives() -> list[str]:
    """The keys of each built-in objective, which are its class's fields."""
    names = list(registry.BUILT_IN)
    listed = ", ".join(f"`{name}`" for name in names)
    lines = [
        f"`name` (default `{registry.DEFAULT}`) chooses the objective: {listed}, or one",
        f"that an installed package adds as an entry point of `{registry.ENTRY_POINTS}`. The other keys are its own; a",
        "key of another objective is refused, unless it has its default.",
    ]
    for name in names:
        kind = registry.objective_class(name)
        fields = registry.keys(kind).values()
        lines += ["", f"### {name}", "", *(_table(kind, fields) if fields else ["No keys."])]
    return lines


def _table(kind: type, fields: Iterable[dataclasses.Field]) -> list[str]:
    meanings = _meanings(kind)
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key in fields:
        default = "none" if key.default is None else key.default
        default = str(default).lower() if isinstance(default, bool) else default
        default = list(default) if isinstance(default, tuple) else default
        choices = ", ".join(f"`{choice}`" for choice in getattr(key.type, "__args__", ()) if isinstance(choice, str))
        meaning = meanings[key.name] + (f" One of {choices}." if choices else "")
        lines.append(f"| `{key.name}` | `{default}` | {meaning} |")
    return lines


def _meanings(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a class."""
    tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            meaning = " ".join(ast.literal_eval(text.value).split())
            found[field.target.id] = meaning.replace("|", "\\|")
    return found


if __name__ == "__main__":
    print(markdown(), end="")
