"""What a tokenizer is here, whatever its file: the ids of its special symbols, encoding and decoding.

``[MASK]``, BOS, EOS and PAD are *control* symbols: ids that only code inserts. No text gives one, so a document that
contains the characters ``[MASK]`` or ``</s>`` becomes ordinary pieces and cannot forge a mask or an end of document.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from card_scale.errors import DataError

PAD_ID, UNK_ID, BOS_ID, EOS_ID, MASK_ID = 0, 1, 2, 3, 4
SPECIAL_IDS = {"pad": PAD_ID, "unk": UNK_ID, "bos": BOS_ID, "eos": EOS_ID, "mask": MASK_ID}
"""Of the tokenizers that this project trains; others have their own, see ``Tokenizer.special_ids``."""
CONTROL_IDS = (PAD_ID, BOS_ID, EOS_ID, MASK_ID)
MASK_PIECE = "[MASK]"

_PROBES = {
    "leading, repeated and trailing spaces": "  a   b ",
    "tabs and line breaks": "a\n\tb\r\n\nc\n",
    "upper case": "aBC",
    "accents": "\u00e9 e\u0301",
    "compatibility forms": "\ufb01 \uff21",
    "the sign U+2581": "a\u2581b",
    "characters that it does not know": "a\ue000b",
}
"""Texts that a tokenizer may give back otherwise, by what is at stake."""


class Tokenizer(ABC):
    """An encoder and decoder; create it with :meth:`load`.

    Attributes:
        content: the tokenizer's file, complete: with the special symbols that the file it was read from lacked.
        sha256: of ``content``, hexadecimal; identifies the tokenizer.
        vocabulary_size: one more than the highest id.
        special_ids: of "pad", "bos", "eos" and "mask", and of "unk" where there is such a symbol.
        control_ids: all ids that no text gives.
        added_ids: those that the file it was read from lacked.
    """

    file_name: ClassVar[str]
    """Of the file in a dataset or a checkpoint."""

    def __init__(
        self,
        content: bytes,
        vocabulary_size: int,
        special_ids: Mapping[str, int],
        control_ids: Iterable[int],
        added_ids: Iterable[int] = (),
    ):
        self.content, self.vocabulary_size, self.special_ids = content, vocabulary_size, dict(special_ids)
        self.control_ids, self.added_ids = frozenset(control_ids), frozenset(added_ids)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.eos_id, self.mask_id, self.pad_id = (self.special_ids[name] for name in ("eos", "mask", "pad"))

    @staticmethod
    def load(path: str | Path) -> "Tokenizer":
        """Read a sentencepiece model or a ``tokenizer.json``; missing special symbols are added above its ids.

        Where the file does not say which symbol ends a document, ``tokenizer_config.json`` or
        ``special_tokens_map.json`` beside it does, or its name.

        Raises:
            DataError: the file is missing, is neither of the two, has nothing that ends a document, or has a control
                symbol that text could produce; naming the file and what was found.
        """
        # Both build on this module, and a run needs the library of one of them.
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: cannot read the tokenizer ({error.strerror}); make one with tools/tokenizer.py"
            ) from error
        found: Tokenizer
        if path.suffix == ".json" or content.lstrip()[:1] == b"{":
            from card_scale.data.json_tokenizer import JsonTokenizer

            found = JsonTokenizer.read(content, path)
        else:
            from card_scale.data.sentencepiece_tokenizer import SentencepieceTokenizer

            found = SentencepieceTokenizer.read(content, path)
        found.check_control_symbols(path)
        return found

    @abstractmethod
    def encode(self, text: str | bytes) -> list[int]:
        """Token ids of a text (bytes must be UTF-8), without BOS or EOS; never a control id."""

    def encode_batch(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """Token ids of each text as int32 arrays [tokens]; the same ids as :meth:`encode`, at a lower cost."""
        return [np.array(self.encode(text), dtype=np.int32) for text in texts]

    @abstractmethod
    def decode(self, ids: list[int] | np.ndarray) -> str:
        """The text of token ids that begin a document; control symbols decode to nothing."""

    @abstractmethod
    def piece_bytes(self, token: int) -> bytes:
        """What one id, inside a text, contributes to its UTF-8 bytes; nothing for control symbols."""

    @abstractmethod
    def piece(self, token: int) -> str:
        """The piece of one id, for display; control symbols by their name."""

    def continuation(self, ids: list[int] | np.ndarray) -> str:
        """The text of token ids that go on with another text: with the space that a first word would lose."""
        return self.decode([*self._letter, *ids])[len(self.decode(self._letter)) :]

    @property
    def can_be_cut(self) -> bool:
        """Whether a text cut between two characters that stand side by side in no piece has the ids of its parts."""
        return False

    @cached_property
    def _letter(self) -> list[int]:
        return self.encode("a")

    @cached_property
    def rewrites(self) -> tuple[str, ...]:
        """In which texts something does not come back as it was, each with an example; empty where all text does."""
        back = {name: self.decode(self.encode(text)) for name, text in _PROBES.items()}
        return tuple(
            f"{name} ({_PROBES[name]!a} becomes {text!a})" for name, text in back.items() if text != _PROBES[name]
        )

    def check_control_symbols(self, path: Path) -> None:
        """Raise DataError where the name of a control symbol, written as text, gives a control symbol."""
        for token in sorted(self.control_ids):
            name = self.piece(token)
            for text in (name, f"a{name}b", f" {name} "):
                if forged := self.control_ids.intersection(self.encode(text)):
                    raise DataError(
                        f"{path}: text that contains {name!r} gives the control symbol {self.piece(min(forged))!r}; "
                        "such a tokenizer cannot be used, since text could then end documents or forge masks"
                    )


def encode_around(text: str, sign: str, ids: list[int], encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of a text in which a sign, which ``encode`` cannot be given, becomes the given ids."""
    first, *others = text.split(sign)
    found = encode(first)
    for part in others:
        found += ids
        found += encode(part)
    return found
