"""Tokenizers in sentencepiece's model files: those that this project trains, and any other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from card_scale.data.special_symbols import COMMON_NAMES, find_names, new_name, own_name, stated_names
from card_scale.data.tokenizer import SPECIAL_IDS, Tokenizer, encode_around
from card_scale.errors import DataError

SPACE = "\u2581"
"""What stands for a space inside sentencepiece, which cannot tell it from one in a text."""
_SPACE_BYTES = SPACE.encode()
_MASK_NAMES = (own_name("mask"), *COMMON_NAMES["mask"])
"""A model file has a place for the names of PAD, BOS and EOS; the mask is the first control symbol called so."""


class SentencepieceTokenizer(Tokenizer):
    """A sentencepiece model. Where it keeps all other text as it is, U+2581 is kept too, by its three bytes."""

    file_name = "tokenizer.model"

    def __init__(
        self,
        content: bytes,
        processor: sentencepiece.SentencePieceProcessor,
        special_ids: dict[str, int],
        added_ids: tuple[int, ...] = (),
    ):
        size = processor.get_piece_size()
        control = {token for token in range(size) if processor.is_control(token)}
        super().__init__(content, size, special_ids, control, added_ids)
        self._processor = processor
        ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_BYTES]
        has_bytes = all(processor.is_byte(token) for token in ids)
        adds_a_space = any(SPACE in processor.id_to_piece(token) for token in processor.encode("x", return_type=int))
        self._space_sign = ids if has_bytes and not adds_a_space else None
        """The ids of U+2581 where texts can be cut at it: a cut would add a space where one is put before each."""

    @classmethod
    def read(cls, content: bytes, path: Path) -> "SentencepieceTokenizer":
        """The tokenizer of a model file. Raises DataError, naming ``path``, as ``Tokenizer.load`` does."""
        processor = open_model(content, path)
        special = _special_ids(processor)
        if special is not None and not stated_names(path.parent):
            return cls(content, processor, special)
        completed, ids, added = _completed(content, processor, path)
        if ids == special:
            return cls(content, processor, special)
        processor = open_model(completed, path)
        assert _special_ids(processor) == ids  # as it is read from a dataset, with no files beside it
        return cls(completed, processor, ids, added)

    def encode(self, text: str | bytes) -> list[int]:
        """As ``Tokenizer.encode``."""
        if self._space_sign is None or not _has_space_sign(text):
            return self._processor.encode(text, return_type=int)
        text = text.decode() if isinstance(text, bytes) else text
        return encode_around(text, SPACE, self._space_sign, self._processor.encode)

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """As ``Tokenizer.encode_batch``."""
        found = self._processor.encode(texts, return_type="numpy", num_threads=1)  # type: ignore[arg-type]
        if self._space_sign is not None:
            for place, text in enumerate(texts):
                if _has_space_sign(text):
                    found[place] = np.array(self.encode(text), dtype=np.int32)
        return found

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """As ``Tokenizer.decode``."""
        return self._processor.decode([int(token) for token in ids])

    def piece_bytes(self, token: int) -> bytes:
        """As ``Tokenizer.piece_bytes``; the unknown symbol stands for nothing."""
        token = int(token)
        piece = self._processor.id_to_piece(token)
        if self._processor.is_byte(token):
            return bytes([int(piece[1:-1], 16)])
        if token in self.control_ids or self._processor.is_unknown(token):
            return b""
        return piece.replace(SPACE, " ").encode()

    def piece(self, token: int) -> str:
        """As ``Tokenizer.piece``."""
        return self._processor.id_to_piece(int(token))

    @property
    def can_be_cut(self) -> bool:
        """As ``Tokenizer.can_be_cut``: where nothing is put before a text, and nothing rewritten across a cut."""
        return self._space_sign is not None and not self.rewrites


def _has_space_sign(text: str | bytes) -> bool:
    return _SPACE_BYTES in text if isinstance(text, bytes) else SPACE in text


def open_model(content: bytes, path: Path) -> sentencepiece.SentencePieceProcessor:
    """The library's reader of a model file as it is. Raises DataError, naming ``path``, for what is none."""
    if not content:
        raise DataError(f"{path}: empty file, expected a sentencepiece model or a tokenizer.json")
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except (RuntimeError, ValueError) as error:
        raise DataError(f"{path}: not a sentencepiece model ({error})") from error


def _special_ids(processor: sentencepiece.SentencePieceProcessor) -> dict[str, int] | None:
    """The ids of a model's special symbols; None where one is missing or could be matched in text."""
    found = {
        "pad": processor.pad_id(),
        "unk": processor.unk_id(),
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
    }
    # piece_to_id answers the unknown id, which is no control symbol, for a piece that does not exist
    masks = [processor.piece_to_id(name) for name in _MASK_NAMES]
    masks = [token for token in masks if processor.is_control(token) and token not in found.values()]
    found["mask"] = masks[0] if masks else -1
    assert list(found) == list(SPECIAL_IDS)
    controls = [token for role, token in found.items() if role != "unk"]
    return found if all(token >= 0 and processor.is_control(token) for token in controls) else None


def _completed(
    content: bytes, processor: sentencepiece.SentencePieceProcessor, path: Path
) -> tuple[bytes, dict[str, int], tuple[int, ...]]:
    """A model with all special symbols as control symbols, missing ones above its ids; the ids of all; the new ids.

    All other pieces keep their ids, and text its tokens.
    """
    # Only foreign models are taken apart; a run on one of this project's does without protobuf.
    from sentencepiece import sentencepiece_model_pb2

    model: Any = sentencepiece_model_pb2.ModelProto.FromString(content)
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    places = {piece.piece: place for place, piece in enumerate(model.pieces)}
    special = [piece.piece for piece in model.pieces if piece.type in (kinds.CONTROL, kinds.USER_DEFINED)]
    mask = processor.piece_to_id(own_name("mask"))
    own = {"pad": processor.pad_id(), "bos": processor.bos_id(), "eos": processor.eos_id()}
    own |= {"unk": processor.unk_id(), "mask": mask if processor.is_control(mask) else -1}
    own_names = {role: model.pieces[token].piece for role, token in own.items() if token >= 0}
    names = find_names(path, stated_names(path.parent, own_names), places, special, own_names["unk"])
    ids, added = dict(own), []
    for role in COMMON_NAMES:
        if role not in names:
            names[role] = new_name(role, places)
            places[names[role]] = len(model.pieces)
            added.append(len(model.pieces))
            model.pieces.add(piece=names[role], score=0.0)
        ids[role] = places[names[role]]
        model.pieces[ids[role]].type = kinds.CONTROL
        if role != "mask":
            setattr(model.trainer_spec, f"{role}_piece", names[role])
            setattr(model.trainer_spec, f"{role}_id", ids[role])
    control = {piece.piece for piece in model.pieces if piece.type == kinds.CONTROL}
    masks = control - {names["pad"], names["bos"], names["eos"]}
    if names["mask"] != next((name for name in _MASK_NAMES if name in masks), None):
        if own_name("mask") in places:
            raise DataError(f"{path}: has a piece {own_name('mask')!r}, the name that its mask is to be given")
        model.pieces[ids["mask"]].piece = own_name("mask")
    return model.SerializeToString(), ids, tuple(added)
