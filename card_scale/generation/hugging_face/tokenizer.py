"""A sentencepiece tokenizer of this project as a ``tokenizer.json``, which encodes and decodes identically."""

import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from card_scale.data.tokenizer import BOS_ID, CONTROL_IDS, EOS_ID, MASK_ID, PAD_ID, UNK_ID
from card_scale.errors import DataError
from card_scale.files import write_atomically

SPACE = "\u2581"
NEVER_CHOSEN = -1e6
"""Score of a control symbol in a unigram model, whose every piece can match text."""


def write_tokenizer(model_file: Path, folder: Path, length: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` of a sentencepiece model file.

    Raises DataError for a unigram model that could not spell its own control symbols.
    """
    model = sentencepiece_model_pb2.ModelProto.FromString(model_file.read_bytes())
    pieces = [piece.piece for piece in model.pieces]
    added = [
        {
            "id": token,
            "content": pieces[token],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in sorted({*CONTROL_IDS, UNK_ID})
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": _model(model, pieces, model_file),
    }
    write_atomically(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False).encode())
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": pieces[BOS_ID],
        "eos_token": pieces[EOS_ID],
        "pad_token": pieces[PAD_ID],
        "unk_token": pieces[UNK_ID],
        "mask_token": pieces[MASK_ID],
        # Text that holds the name of a control symbol is text.
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": length,
    }
    write_atomically(folder / "tokenizer_config.json", json.dumps(config, indent=1).encode())


def _model(model: Any, pieces: list[str], model_file: Path) -> dict[str, Any]:
    kinds = sentencepiece_model_pb2.TrainerSpec
    if model.trainer_spec.model_type == kinds.UNIGRAM:
        missing = {sign for token in CONTROL_IDS for sign in pieces[token]} - set(pieces)
        if missing:
            raise DataError(
                f"{model_file}: a unigram model without a piece for {' '.join(sorted(missing))} cannot be exported, "
                "since text that spells a control symbol would become it"
            )
        vocabulary = [
            [piece.piece, NEVER_CHOSEN if token in CONTROL_IDS else piece.score]
            for token, piece in enumerate(model.pieces)
        ]
        return {"type": "Unigram", "unk_id": UNK_ID, "vocab": vocabulary, "byte_fallback": True}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[UNK_ID],
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {piece: token for token, piece in enumerate(pieces)},
        "merges": _merges(model),
    }


def _merges(model: Any) -> list[list[str]]:
    """All pairs of pieces that make a piece, those of the best piece first."""
    normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == normal}
    ranked = sorted(scores, key=lambda piece: -scores[piece])
    return [
        [piece[:cut], piece[cut:]]
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
