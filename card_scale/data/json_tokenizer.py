"""Tokenizers in Hugging Face's ``tokenizer.json``, by the ``tokenizers`` library.

The file says what a special symbol is called, but not which one ends a document. It is completed once: symbols that
are missing are added, and the ids of all of them noted in its "model", where every reader of the format passes over
what it does not know. That one file then goes with a dataset, a checkpoint and an exported folder.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers

from card_scale.data.special_symbols import COMMON_NAMES, find_names, new_name, stated_names
from card_scale.data.tokenizer import Tokenizer, encode_around
from card_scale.errors import DataError

NOTED_IDS = "card_scale_special_ids"
"""Key of the "model" that holds the ids of the special symbols by role."""
_SIGN = "\U0010ffff"
_HIDDEN = re.compile(f"{_SIGN}[0-9]+{_SIGN}")
"""What control symbols are called in memory. A text that holds such a name is cut at the sign."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_NEW_SYMBOL = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
_NO_FRAME = MappingProxyType({"truncation": None, "padding": None, "post_processor": None})


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``."""

    file_name = "tokenizer.json"

    def __init__(self, content: bytes, tree: dict[str, Any], added_ids: tuple[int, ...], path: Path):
        special = tree["model"][NOTED_IDS]
        control = {token["id"] for token in tree["added_tokens"] if token["special"]} - {special.get("unk")}
        self._names = {token["id"]: token["content"] for token in tree["added_tokens"] if token["id"] in control}
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(_without_control_symbols(tree, self._names)))
        # The library raises no narrower one.
        except Exception as error:
            raise DataError(f"{path}: not a tokenizer.json that this version of tokenizers reads ({error})") from error
        for token in self._names:
            if self._tokenizer.id_to_token(token) != _hidden(token):
                raise DataError(f"{path}: id {token}, of {self._names[token]!r}, is that of another token as well")
        self._tokenizer.encode_special_tokens = True
        size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        super().__init__(content, size, special, control, added_ids)
        decoders = json.dumps(tree.get("decoder"))
        self._has_byte_letters, self._has_byte_pieces = '"ByteLevel"' in decoders, '"ByteFallback"' in decoders

    @classmethod
    def read(cls, content: bytes, path: Path) -> "JsonTokenizer":
        """The tokenizer of a file's content. Raises DataError, naming ``path``, as ``Tokenizer.load`` does."""
        tree = read_tree(content, path)
        if NOTED_IDS in tree["model"]:
            return cls(content, tree, (), path)
        added = _complete(tree, path)
        return cls(json.dumps(tree, ensure_ascii=False).encode(), tree, added, path)

    def encode(self, text: str | bytes) -> list[int]:
        """As ``Tokenizer.encode``."""
        text = text.decode() if isinstance(text, bytes) else text
        if _SIGN in text and _HIDDEN.search(text):
            return encode_around(text, _SIGN, self._encode(_SIGN), self._encode)
        return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        # Of one text, so that each process of a build stays with one core; without offsets it takes half the time.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """As ``Tokenizer.decode``."""
        kept = [token for token in map(int, ids) if token not in self.control_ids]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def piece_bytes(self, token: int) -> bytes:
        """As ``Tokenizer.piece_bytes``."""
        token = int(token)
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self.control_ids:
            return b""
        if self._has_byte_letters and all(letter in _BYTE_OF for letter in piece):
            return bytes(_BYTE_OF[letter] for letter in piece)
        if self._has_byte_pieces and (byte := _BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        return self.continuation([token]).encode()

    def piece(self, token: int) -> str:
        """As ``Tokenizer.piece``; nothing for an id that the vocabulary passes over."""
        return self._names.get(int(token)) or self._tokenizer.id_to_token(int(token)) or ""


def _byte_letters() -> dict[str, int]:
    """The byte of each letter that stands for one in a byte-level vocabulary.

    A printable byte of Latin-1 is its own letter; the others have those from U+0100 on, in order.
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("\u00a1"), ord("\u00ac") + 1), *range(ord("\u00ae"), 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTE_OF = _byte_letters()


def _hidden(token: int) -> str:
    return f"{_SIGN}{token}{_SIGN}"


def read_tree(content: bytes, path: Path) -> dict[str, Any]:
    """What a ``tokenizer.json`` holds, with a list of added tokens. Raises DataError, naming ``path``, for another."""
    try:
        tree = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("model"), dict) or "vocab" not in tree["model"]:
        raise DataError(f'{path}: no tokenizer.json, which has a "model" with a "vocab"')
    tree["added_tokens"] = tree.get("added_tokens") or []
    return tree


def pieces_of(tree: dict[str, Any]) -> dict[str, int]:
    """The id of each piece: in its vocabulary Unigram has a list of pieces with scores, all others a table."""
    vocabulary = tree["model"]["vocab"]
    if not isinstance(vocabulary, dict):
        vocabulary = {piece: token for token, (piece, _) in enumerate(vocabulary)}
    return vocabulary | {token["content"]: token["id"] for token in tree["added_tokens"]}


def _complete(tree: dict[str, Any], path: Path) -> tuple[int, ...]:
    """Add the special symbols that are missing and note the ids of all; return the new ids.

    What would frame, cut or vary a text goes, so that no reader of the file adds to what training saw.
    """
    tree |= _NO_FRAME
    if "dropout" in tree["model"]:
        tree["model"]["dropout"] = None
    known = pieces_of(tree)
    symbols = {token["content"]: token for token in tree["added_tokens"]}
    stated = stated_names(path.parent)
    unknown = tree["model"].get("unk_token")
    if isinstance(tree["model"].get("unk_id"), int):
        unknown = {token: piece for piece, token in known.items()}.get(tree["model"]["unk_id"])
    special = (name for name, symbol in symbols.items() if symbol["special"])
    names = find_names(path, stated, known, special, unknown)
    ids, added = {}, []
    for role in COMMON_NAMES:
        if role not in names:
            names[role] = new_name(role, known)
            known[names[role]] = max(known.values()) + 1
            added.append(known[names[role]])
        name = names[role]
        ids[role] = known[name]
        if name not in symbols:
            symbols[name] = {"id": known[name], "content": name, **_NEW_SYMBOL}
            tree["added_tokens"].append(symbols[name])
    tree["added_tokens"].sort(key=lambda token: token["id"])
    if unknown in known and known[unknown] not in ids.values():
        ids["unk"] = known[unknown]
    tree["model"][NOTED_IDS] = ids
    return tuple(added)


def _without_control_symbols(tree: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
    """What the library is given: control symbols under names that no text holds, and nothing that cuts or frames."""
    hidden = {name: _hidden(token) for token, name in names.items()}
    model = {key: value for key, value in tree["model"].items() if key != NOTED_IDS}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): token for piece, token in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if not _makes_any(merge, hidden)]
    if model.get("unk_token") in hidden:
        # An unknown character is left out then, and not made an end of document.
        model["unk_token"] = None
    if "dropout" in model:
        model["dropout"] = None
    added = [token | {"content": hidden.get(token["content"], token["content"])} for token in tree["added_tokens"]]
    return tree | _NO_FRAME | {"model": model, "added_tokens": added}


def _makes_any(merge: str | list[str], names: Collection[str]) -> bool:
    """Whether a merge, a pair or as older files have it both with a space between, reads or makes one of the pieces."""
    pair = merge.split(" ") if isinstance(merge, str) else merge
    return any(piece in names for piece in (*pair, "".join(pair)))
