"""The sentencepiece tokenizer: fixed ids of the control symbols, encoding and decoding.

``[MASK]``, BOS, EOS and PAD are *control* symbols: they reserve an id that only code inserts. Sentencepiece never
matches a control symbol in text, so a document that contains the characters ``[MASK]`` or ``</s>`` becomes ordinary
pieces and cannot forge a mask or an end of document.
"""

import hashlib
from pathlib import Path

import numpy as np
import sentencepiece

from card_scale.errors import DataError

PAD_ID, UNK_ID, BOS_ID, EOS_ID, MASK_ID = 0, 1, 2, 3, 4
SPECIAL_IDS = {"pad": PAD_ID, "unk": UNK_ID, "bos": BOS_ID, "eos": EOS_ID, "mask": MASK_ID}
CONTROL_IDS = (PAD_ID, BOS_ID, EOS_ID, MASK_ID)  # never in encoded text
MASK_PIECE = "[MASK]"

# Text that only an identity tokenizer with byte fallback gives back: leading, doubled and trailing spaces, tab, CRLF,
# a ligature and a full-width letter (which NFKC would rewrite), a combining accent, a character outside any vocabulary.
_PROBE = "  if x:\r\n\t\ty  =  1 \n\n\ufb01 \uff21 e\u0301 \U0001f9ff "


class Tokenizer:
    """An encoder and decoder with the ids this project relies on; create it with :meth:`load`."""

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, sha256: str):
        self._processor = processor
        self.sha256 = sha256  # of the model file, hexadecimal
        self.vocabulary_size: int = processor.get_piece_size()

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a sentencepiece model file.

        Raises:
            DataError: the file is missing, is no sentencepiece model, or has other special ids, a special symbol that
                is no control symbol, no byte fallback, or rewrites text; naming the file and what was found.
        """
        path = Path(path)
        try:
            model = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot read the tokenizer model ({error.strerror}); make one with tools/tokenizer.py"
            ) from error
        if not model:
            raise DataError(f"{path}: empty file, expected a sentencepiece model")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, ValueError) as error:
            raise DataError(f"{path}: not a sentencepiece model ({error})") from error
        _check(processor, path)
        return cls(processor, hashlib.sha256(model).hexdigest())

    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text (bytes must be UTF-8), without BOS or EOS; never a control id."""
        return self._processor.encode(text, return_type=int)

    def encode_batch(self, texts: list[str] | list[bytes], threads: int = 1) -> list[np.ndarray]:
        """Token ids of each text as int32 arrays [tokens]; the same ids as :meth:`encode`, at a lower cost."""
        return self._processor.encode(texts, return_type="numpy", num_threads=threads)

    def decode(self, ids: list[int] | np.ndarray) -> str:
        """The text of token ids; control symbols decode to nothing."""
        return self._processor.decode([int(token) for token in ids])

    def piece_bytes(self, token: int) -> bytes:
        """What one id contributes to the UTF-8 bytes of a text; nothing for control symbols and the unknown one."""
        piece = self._processor.id_to_piece(int(token))
        if self._processor.is_byte(int(token)):
            return bytes([int(piece[1:-1], 16)])
        if token in SPECIAL_IDS.values():
            return b""
        return piece.replace("\u2581", " ").encode()

    def piece(self, token: int) -> str:
        """The piece of one id, for display; control symbols by their name."""
        return self._processor.id_to_piece(int(token))


def _check(processor: sentencepiece.SentencePieceProcessor, path: Path) -> None:
    found = {
        "pad": processor.pad_id(),
        "unk": processor.unk_id(),
        "bos": processor.bos_id(),
        "eos": processor.eos_id(),
        "mask": processor.piece_to_id(MASK_PIECE),
    }
    # piece_to_id answers the unknown id for a piece that does not exist
    if found != SPECIAL_IDS:
        raise DataError(
            f"{path}: special ids {found}, expected {SPECIAL_IDS}; make a tokenizer with tools/tokenizer.py"
        )
    for name in ("pad", "bos", "eos", "mask"):
        if not processor.is_control(SPECIAL_IDS[name]):
            raise DataError(
                f"{path}: id {SPECIAL_IDS[name]} ({name}) is not a control symbol, so text could produce it; "
                "make a tokenizer with tools/tokenizer.py"
            )
    byte_pieces = sum(processor.is_byte(token) for token in range(processor.get_piece_size()))
    if byte_pieces != 256:
        raise DataError(f"{path}: {byte_pieces} byte pieces, expected 256 (train with byte fallback)")
    decoded = processor.decode(processor.encode(_PROBE, return_type=int))
    if any("\u2581" in processor.id_to_piece(token) for token in processor.encode("x", return_type=int)):
        raise DataError(f"{path}: the tokenizer puts a space before text; train it without a dummy prefix")
    if decoded != _PROBE:
        raise DataError(
            f"{path}: the tokenizer rewrites text ({_PROBE!r} comes back as {decoded!r}); train it with identity "
            "normalisation and all whitespace kept"
        )
