"""Which symbols of a foreign tokenizer end a document, pad, begin one and stand for a mask, and names for new ones."""

from collections.abc import Collection, Iterable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from card_scale.errors import DataError
from card_scale.files import read_json

SIDECARS = ("special_tokens_map.json", "tokenizer_config.json")
"""Files beside a tokenizer that may name its symbols; the last one has the last word."""

COMMON_NAMES = MappingProxyType(
    {
        "pad": ("<pad>", "[PAD]", "<|pad|>"),
        "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]", "[BOS]"),
        "eos": ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "[EOS]", "[SEP]"),
        "mask": ("[MASK]", "<mask>", "<|mask|>"),
    }
)
"""How such symbols are usually called; a new one gets the first name that is free."""

# A BERT has no ends of documents; what separates its sentences is used so.
_STAND_INS = (("eos", "sep_token"), ("bos", "cls_token"))


def stated_names(folder: Path) -> dict[str, str]:
    """What the files beside a tokenizer call its symbols, by role. Raises DataError for a file that is no JSON."""
    stated: dict[str, Any] = {}
    for path in (folder / name for name in SIDECARS):
        content = read_json(path) if path.is_file() else {}
        if isinstance(content, dict):
            stated |= {key: value for key, value in content.items() if value is not None}
    keys = [(role, f"{role}_token") for role in ("pad", "unk", "bos", "eos", "mask")]
    names: dict[str, str] = {}
    for role, key in (*keys, *_STAND_INS):
        value = stated.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if isinstance(name, str) and role not in names:
            names[role] = name
    return names


def find_names(path: Path, stated: dict[str, str], known: Collection[str], special: Iterable[str]) -> dict[str, str]:
    """The names of the symbols that a tokenizer has, by role; "eos" is always among them.

    Args:
        path: of the tokenizer, for messages.
        stated: what is said about them, by role.
        known: the names of all pieces.
        special: those that are no text; only among these a name is told by custom.

    Raises:
        DataError: nothing ends a document, or a stated name is no piece; naming what to write where.
    """
    special = set(special)
    names: dict[str, str] = {}
    for role, common in COMMON_NAMES.items():
        if role in stated and stated[role] in known:
            names[role] = stated[role]
        elif role == "eos" and role in stated:
            raise DataError(
                f"{path}: the files beside it call the end of a document {stated[role]!r}, which is no piece"
            )
        elif by_custom := [name for name in common if name in special]:
            names[role] = by_custom[0]
    if "eos" not in names:
        shown = ", ".join(sorted(special)[:8]) or "none"
        raise DataError(
            f'{path}: which symbol ends a document? Write {{"eos_token": "NAME"}} into {SIDECARS[-1]} beside it; its '
            f"special symbols are: {shown}"
        )
    others = {names["eos"], names.get("pad"), names.get("bos"), stated.get("unk")}
    return {role: name for role, name in names.items() if role != "mask" or name not in others}


def new_name(role: str, known: Collection[str]) -> str:
    """A name for a symbol that a tokenizer lacks, which no piece has."""
    free = [name for name in COMMON_NAMES[role] if name not in known]
    return free[0] if free else f"<|card_scale_{role}|>"
