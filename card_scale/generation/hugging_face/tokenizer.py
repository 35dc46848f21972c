"""A dataset's tokenizer as a ``tokenizer.json`` with its configuration, which encodes and decodes identically."""

import base64
import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from card_scale.data.json_tokenizer import JsonTokenizer
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from card_scale.files import write_atomically

SPACE = "\u2581"
KINDS = sentencepiece_model_pb2.ModelProto.SentencePiece
NORMAL = KINDS.NORMAL
"""Type of the pieces that text is made of; the others stand for symbols and bytes."""
NEVER_CHOSEN = -1e6
"""Score of all but normal pieces in a unigram model, where transformers lets every piece match text."""


def write_tokenizer(path: Path, folder: Path, length: int) -> None:
    """Write ``tokenizer_config.json``, and ``tokenizer.json`` unless ``path`` is one, of a tokenizer's file.

    Raises DataError for a sentencepiece model that the format cannot express.
    """
    tokenizer = Tokenizer.load(path)
    if not isinstance(tokenizer, JsonTokenizer):
        write_atomically(folder / JsonTokenizer.file_name, _converted(tokenizer, path))
    names = {role: tokenizer.piece(token) for role, token in tokenizer.special_ids.items()}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # A text begins behind the end of another.
        "bos_token": names["eos"],
        "eos_token": names["eos"],
        "pad_token": names["pad"],
        "unk_token": names.get("unk"),
        "mask_token": names["mask"],
        # Text that holds the name of a control symbol is text.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }
    write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=1).encode())


def _converted(tokenizer: Tokenizer, path: Path) -> bytes:
    """The ``tokenizer.json`` of a sentencepiece model."""
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.content)
    own_symbols = [piece.piece for piece in model.pieces if piece.type == KINDS.USER_DEFINED]
    if own_symbols and model.normalizer_spec.add_dummy_prefix:
        raise DataError(
            f"{path}: a model that puts a space before text and has symbols ({own_symbols[0]!r}) cannot be exported"
        )
    pieces = [piece.piece for piece in model.pieces]
    special = {*tokenizer.control_ids, tokenizer.special_ids["unk"]}
    added = [
        {
            "id": token,
            "content": pieces[token] if token in special else pieces[token].replace(SPACE, " "),
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in special,
        }
        for token, piece in enumerate(model.pieces)
        if token in special or piece.type == KINDS.USER_DEFINED
    ]
    spaces = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders = [spaces, {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.normalizer_spec.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": _normalizer(model.normalizer_spec),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model(model, pieces, path),
    }
    return json.dumps(content, ensure_ascii=False).encode()


def _normalizer(spec: Any) -> dict[str, Any]:
    """What sentencepiece does to a text before it cuts it, in its order."""
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        charsmap = base64.b64encode(spec.precompiled_charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {"type": "Sequence", "normalizers": [*steps, spaces]} if steps else spaces


def _model(model: Any, pieces: list[str], model_file: Path) -> dict[str, Any]:
    falls_back = any(piece.type == KINDS.BYTE for piece in model.pieces)
    if model.trainer_spec.model_type == sentencepiece_model_pb2.TrainerSpec.UNIGRAM:
        names = {piece.piece for piece in model.pieces if piece.type != NORMAL}
        missing = {sign for name in names for sign in name} - set(pieces)
        if missing:
            raise DataError(
                f"{model_file}: a unigram model without a piece for {' '.join(sorted(missing))} cannot be exported, "
                "since text that spells a control symbol or a byte would become it"
            )
        vocabulary = [[piece.piece, piece.score if piece.type == NORMAL else NEVER_CHOSEN] for piece in model.pieces]
        unk = next(token for token, piece in enumerate(model.pieces) if piece.type == KINDS.UNKNOWN)
        return {"type": "Unigram", "unk_id": unk, "vocab": vocabulary, "byte_fallback": falls_back}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": next(piece.piece for piece in model.pieces if piece.type == KINDS.UNKNOWN),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": falls_back,
        "vocab": {piece: token for token, piece in enumerate(pieces)},
        "merges": _merges(model),
    }


def _merges(model: Any) -> list[list[str]]:
    """All pairs of pieces that make a piece, those of the best piece first."""
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    ranked = sorted(scores, key=lambda piece: -scores[piece])
    return [
        [piece[:cut], piece[cut:]]
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
