"""A sentencepiece tokenizer of this project as a ``tokenizer.json``, which encodes and decodes identically."""

import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from card_scale.data.tokenizer import CONTROL_IDS, EOS_ID, MASK_ID, PAD_ID, UNK_ID
from card_scale.errors import DataError
from card_scale.files import write_atomically

SPACE = "\u2581"
NORMAL = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
"""Type of the pieces that text is made of; the others stand for symbols and bytes."""
NEVER_CHOSEN = -1e6
"""Score of all but normal pieces in a unigram model, where transformers lets every piece match text."""


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
        # A text begins behind the end of another.
        "bos_token": pieces[EOS_ID],
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
    if model.trainer_spec.model_type == sentencepiece_model_pb2.TrainerSpec.UNIGRAM:
        names = {piece.piece for piece in model.pieces if piece.type != NORMAL}
        missing = {sign for name in names for sign in name} - set(pieces)
        if missing:
            raise DataError(
                f"{model_file}: a unigram model without a piece for {' '.join(sorted(missing))} cannot be exported, "
                "since text that spells a control symbol or a byte would become it"
            )
        vocabulary = [[piece.piece, piece.score if piece.type == NORMAL else NEVER_CHOSEN] for piece in model.pieces]
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
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == NORMAL}
    ranked = sorted(scores, key=lambda piece: -scores[piece])
    return [
        [piece[:cut], piece[cut:]]
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
