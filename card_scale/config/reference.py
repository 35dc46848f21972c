"""What the configuration keys mean, made from the configuration classes and the objectives themselves: a page, or an
answer to one question."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from card_scale.config import MEGATRON_ALIASES, Config, nearest
from card_scale.errors import CommandLineError
from card_scale.objectives import registry


class Key(NamedTuple):
    """A key as users meet it."""

    name: str
    """``group.key``."""
    default: str
    meaning: str
    choices: tuple[str, ...]
    objective: str | None = None
    """Whose key it is, None of the other groups."""


def describe(name: str) -> list[str]:
    """Return lines that explain ``group.key``, all keys of ``group``, or every key that is called so.

    Raises CommandLineError, naming the nearest one, where there is none.
    """
    keys = [_objective_name(), *_all_keys()]
    found = [key for key in keys if name in (key.name, key.name.partition(".")[0], key.name.partition(".")[2])]
    if not found:
        raise CommandLineError(f"there is no key {name!r}{nearest(name, {key.name for key in keys})}")
    lines = []
    for key in found:
        of = "" if key.objective is None else f", of objective {key.objective}"
        lines.append(f"{key.name}  (default {key.default}{of})")
        meaning = key.meaning + (f" One of {', '.join(key.choices)}." if key.choices else "")
        lines += textwrap.wrap(meaning, 100, initial_indent="    ", subsequent_indent="    ")
    options = [f"--{option}" for option, key in MEGATRON_ALIASES.items() if key == found[0].name and len(found) == 1]
    return lines + [f"    As in Megatron-LM: {option}" for option in options]


def markdown() -> str:
    """Return docs/configuration.md: every group and key with its type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "Made by `python -m card_scale.config.reference > docs/configuration.md` from `card_scale/config/schema.py`",
        "and the objectives; a test compares the two. A key that is not listed is an error that names the nearest one.",
        "On the command line write `group.key=value`, or one of the Megatron-LM options below; `--help KEY` says what",
        "is said here. A path may begin with `~`.",
    ]
    for group in dataclasses.fields(Config):
        lines += ["", f"## {group.name}", ""]
        lines += _objectives() if group.name == "objective" else _table(_keys_of_group(group))
    lines += ["", "## Megatron-LM options", "", "| option | key |", "|---|---|"]
    lines += [f"| `--{option}` | `{key}` |" for option, key in MEGATRON_ALIASES.items()]
    return "\n".join(lines) + "\n"


def _objectives() -> list[str]:
    """The keys of each built-in objective."""
    lines = [*textwrap.wrap(f"`name` (default `{registry.DEFAULT}`) chooses the objective: {_names()}", 110)]
    for name in registry.BUILT_IN:
        keys = _table(_keys_of_objective(name))
        lines += ["", f"### {name}", "", *(keys if len(keys) > 2 else ["No keys."])]
    return lines


def _names() -> str:
    listed = ", ".join(f"`{name}`" for name in registry.BUILT_IN)
    return (
        f"{listed}, or one that an installed package adds as an entry point of `{registry.ENTRY_POINTS}`. The other "
        "keys are its own; a key of another objective is refused, unless it has its default."
    )


def _table(keys: Iterable[Key]) -> list[str]:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key in keys:
        meaning = key.meaning.replace("|", "\\|")
        meaning += f" One of {', '.join(f'`{choice}`' for choice in key.choices)}." if key.choices else ""
        lines.append(f"| `{key.name.partition('.')[2]}` | `{key.default}` | {meaning} |")
    return lines


def _all_keys() -> Iterator[Key]:
    for group in dataclasses.fields(Config):
        if group.name == "objective":
            for name in registry.BUILT_IN:
                yield from _keys_of_objective(name)
        else:
            yield from _keys_of_group(group)


def _objective_name() -> Key:
    return Key("objective.name", registry.DEFAULT, _names().replace("`", ""), ())


def _keys_of_group(group: dataclasses.Field) -> Iterator[Key]:
    assert isinstance(group.type, type)
    return _keys(group.name, group.type, dataclasses.fields(group.type))


def _keys_of_objective(name: str) -> Iterator[Key]:
    kind = registry.objective_class(name)
    return _keys("objective", kind, registry.keys(kind).values(), name)


def _keys(group: str, kind: type, fields: Iterable[dataclasses.Field], objective: str | None = None) -> Iterator[Key]:
    """Yield the keys that are fields of a class."""
    meanings = _meanings(kind)
    for field in fields:
        default = "null" if field.default is None else field.default
        default = str(default).lower() if isinstance(default, bool) else default
        default = list(default) if isinstance(default, tuple) else default
        choices = tuple(choice for choice in getattr(field.type, "__args__", ()) if isinstance(choice, str))
        yield Key(f"{group}.{field.name}", str(default), meanings[field.name], choices, objective)


def _meanings(kind: type) -> dict[str, str]:
    """Return the docstring under each field of a class."""
    tree = ast.parse(Path(inspect.getfile(kind)).read_text(encoding="utf-8"))
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__]
    found = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


if __name__ == "__main__":
    print(markdown(), end="")
