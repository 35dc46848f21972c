"""The page of configuration keys, made from the configuration classes themselves."""

import ast
import dataclasses
from pathlib import Path

from card_scale import config as configs
from card_scale.config import schema


def markdown() -> str:
    """Return docs/configuration.md: every group and key with its type, default and meaning."""
    meanings = _meanings()
    lines = [
        "# Configuration",
        "",
        "Made by `python -m card_scale.config.reference > docs/configuration.md` from `card_scale/config/schema.py`; a",
        "test compares the two. A key that is not listed is an error that names the nearest one. On the command line",
        "write `group.key=value`, or one of the Megatron-LM options below.",
    ]
    for group in dataclasses.fields(configs.Config):
        lines += ["", f"## {group.name}", "", "| key | default | meaning |", "|---|---|---|"]
        for key in dataclasses.fields(group.type):
            default = "none" if key.default is None else key.default
            default = str(default).lower() if isinstance(default, bool) else default
            default = list(default) if isinstance(default, tuple) else default
            choices = _choices(key.type)
            meaning = meanings[group.type.__name__, key.name] + (f" One of {choices}." if choices else "")
            lines.append(f"| `{key.name}` | `{default}` | {meaning} |")
    lines += ["", "## Megatron-LM options", "", "| option | key |", "|---|---|"]
    lines += [f"| `--{option}` | `{key}` |" for option, key in configs.MEGATRON_ALIASES.items()]
    return "\n".join(lines) + "\n"


def _choices(kind: object) -> str:
    return ", ".join(f"`{choice}`" for choice in getattr(kind, "__args__", ()) if isinstance(choice, str))


def _meanings() -> dict[tuple[str, str], str]:
    """Return {(class, field): the docstring under the field}."""
    tree = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                    meaning = " ".join(ast.literal_eval(text.value).split())
                    found[node.name, field.target.id] = meaning.replace("|", "\\|")
    return found


if __name__ == "__main__":
    print(markdown(), end="")
