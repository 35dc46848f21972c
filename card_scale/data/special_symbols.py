"""Which symbols of a foreign tokenizer end a document, pad, begin one and stand for a mask, and names for new ones."""

from collections.abc import Collection, Iterable, Mapping
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


def stated_names(folder: Path, own: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """What a tokenizer's symbols are called, by role.

    Args:
        folder: with the files beside the tokenizer; their end of a document is the one that the model was trained on.
        own: what the tokenizer itself says, which is otherwise the last word.

    Raises:
        DataError: a file beside it is no JSON.
    """
    stated: dict[str, Any] = {}
    for path in (folder / name for name in SIDECARS):
        content = read_json(path) if path.is_file() else {}
        if isinstance(content, dict):
            stated |= {key: value for key, value in content.items() if value is not None}
    keys = [(role, f"{role}_token") for role in ("pad", "unk", "bos", "eos", "mask")]
    names: dict[str, str] = {}
    for role, key in (*keys, *_STAND_INS):
        if (role, key) in _STAND_INS and role in own:
            continue
        value = stated.get(key)
        name = value.get("content") if isinstance(value, dict) else value
        if isinstance(name, str) and role not in names:
            names[role] = name
    return {**own, **names, **{role: name for role, name in own.items() if role != "eos"}}


def find_names(
    path: Path, stated: Mapping[str, str], known: Collection[str], special: Iterable[str], unknown: str | None
) -> dict[str, str]:
    """The names of the symbols that a tokenizer has, by role; "eos" is always among them.

    Args:
        path: of the tokenizer, for messages.
        stated: what is said about them, by role.
        known: the names of all pieces.
        special: those that are no text. Only these can be control symbols: text would lose any other piece.
        unknown: what characters become that have no piece. It comes from text, so it can neither pad nor begin one.

    Raises:
        DataError: nothing ends a document, or what is said to end one is no special symbol; naming what to write where.
    """
    special = set(special)
    names = {"eos": _end_of_document(path, stated.get("eos"), known, special)}
    usable = special if unknown == names["eos"] else special - {unknown}
    for role in ("pad", "bos", "mask"):
        if found := [name for name in (stated.get(role), *COMMON_NAMES[role]) if name in usable]:
            names[role] = str(found[0])
    others = {names["eos"], names.get("pad"), names.get("bos"), stated.get("unk")}
    return {role: name for role, name in names.items() if role != "mask" or name not in others}


def _end_of_document(path: Path, stated: str | None, known: Collection[str], special: set[str]) -> str:
    """The name of what ends a document. Raises DataError as ``find_names`` does."""
    by_custom = [name for name in COMMON_NAMES["eos"] if name in special]
    if stated in special or (stated is None and by_custom):
        return stated or by_custom[0]
    write = f'Write {{"eos_token": "NAME"}} into {SIDECARS[-1]} beside it'
    shown = f"its special symbols are: {', '.join(sorted(special)[:8]) or 'none'}"
    if stated is None:
        raise DataError(f"{path}: which symbol ends a document? {write}; {shown}")
    what = "a piece of text and no special symbol" if stated in known else "no piece"
    raise DataError(
        f"{path}: the files beside it call the end of a document {stated!r}, which is {what}. {write}, or give a file "
        f"of this tokenizer that has {stated!r} as a special symbol; {shown}"
    )


def own_name(role: str) -> str:
    """The name for a symbol that only this project gives."""
    return f"<|card_scale_{role}|>"


def new_name(role: str, known: Collection[str]) -> str:
    """A name for a symbol that a tokenizer lacks, which no piece has."""
    free = [name for name in COMMON_NAMES[role] if name not in known]
    return free[0] if free else own_name(role)
