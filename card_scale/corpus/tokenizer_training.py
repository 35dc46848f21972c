"""Training a tokenizer: a deterministic sample of the corpus, then sentencepiece with text kept as it is."""

import contextlib
import hashlib
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import sentencepiece

from card_scale import waiting
from card_scale.corpus import sources
from card_scale.corpus.source_documents import documents
from card_scale.corpus.training_progress import TrainingProgress
from card_scale.data.tokenizer import BOS_ID, EOS_ID, MASK_PIECE, PAD_ID, UNK_ID, Tokenizer
from card_scale.errors import DataError
from card_scale.files import write_atomically

SMALLEST_VOCABULARY = 256 + 5 + 1  # the byte pieces, the special symbols, and something to learn

# Sentencepiece trains on "sentences". Chunks of whole lines keep line breaks, and with them indentation, inside the
# sample, so that pieces such as "):\n" can be learnt: 6 % fewer tokens on Python sources than line by line.
_CHUNK_CHARACTERS = 2000
# A longer line is cut: from some 200,000 characters on unigram training fails, its sums beyond what numbers hold.
_LINE_CHARACTERS = 10_000
# Signs that sentencepiece has for itself, of a space and of what is unknown. It drops a whole sentence that holds the
# latter; text is cut at them, and encoding spells them by their bytes.
_OWN_SIGNS = re.compile("[\u2581\u2585]")
# Written into the model file, and the summation order of unigram training depends on it: a constant, not the machine's.
_THREADS = 16
# Below 1.0, so that the rarest characters are left to the byte pieces and these appear in training data.
_CHARACTER_COVERAGE = 0.9995


class UntrainableError(DataError):
    """A text that the wanted tokenizer cannot be trained on."""


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, model_type: str = "bpe", progress: TrainingProgress | None = None
) -> bytes:
    """Train a sentencepiece model with byte fallback and the fixed special ids.

    The text is kept as it is: identity normalisation, no dummy prefix, whitespace kept and allowed to form pieces,
    digits split. The result is a pure function of the arguments.

    Args:
        texts: documents, in an order that is part of the input.
        vocabulary_size: pieces, the 256 byte pieces and five special symbols included.
        model_type: ``bpe`` trains in seconds and packs tighter, ``unigram`` encodes several times faster.
        progress: told what is read and when training begins.

    Returns:
        The content of a model file.

    Raises:
        DataError: a vocabulary size that no text could have.
        UntrainableError: no text, or a vocabulary that it cannot fill or that is too small for its characters; with the
            numbers that would do. What reading ``texts`` raises passes through.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"vocabulary size {vocabulary_size}: at least {SMALLEST_VOCABULARY} are needed "
            "(256 bytes, 5 special symbols and a character)"
        )
    sentences = _Sentences(texts, progress or TrainingProgress(0))
    if not sentences.any():
        raise UntrainableError("no text to train a tokenizer on: every document is empty or the sample too small")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocabulary_size,
            character_coverage=_CHARACTER_COVERAGE,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            pad_id=PAD_ID,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            control_symbols=[MASK_PIECE],
            max_sentence_length=1 << 24,  # the default would drop a line of several thousand bytes silently
            num_threads=_THREADS,
            minloglevel=2,  # what it warns of is a dropped sentence, which none is, or ends in an error
        )
    except RuntimeError as error:
        if sentences.error is not None:
            raise sentences.error from None
        raise UntrainableError(_reason(str(error), vocabulary_size, sentences.characters)) from error
    return model.getvalue()


def _reason(said: str, size: int, characters: int) -> str:
    """What sentencepiece says of a failure, with what to do."""
    if found := re.search(r"required_chars\. \d+ vs (\d+)", said):
        return (
            f"a vocabulary of {size} is too small for the characters of the text; give --vocabulary-size of at least "
            f"{found[1]}"
        )
    if found := re.search(r"Vocabulary size (?:is )?too high \(\d+\)\. Please set it to a value <= (\d+)", said):
        return (
            f"a vocabulary of {size} is more than {characters} characters of text fill; give --vocabulary-size of at "
            f"most {found[1]}, or more text (--sample-bytes)"
        )
    return f"sentencepiece cannot train a vocabulary of {size} on {characters} characters of text: {said}"


class _Sentences:
    """The texts as sentencepiece is given them; an error of reading them is kept, which it would only quote."""

    def __init__(self, texts: Iterable[str], progress: TrainingProgress):
        self._chunks = (part for chunk in _chunks(texts) for part in _OWN_SIGNS.split(chunk) if part)
        self._progress = progress
        self._first: str | None = None
        self.error: BaseException | None = None
        self.characters = 0

    def any(self) -> bool:
        """Whether there is one."""
        self._first = next(self._chunks, None)
        return self._first is not None

    def __iter__(self) -> Iterator[str]:
        assert self._first is not None  # any was asked
        try:
            for sentence in itertools.chain([self._first], self._chunks):
                self.characters += len(sentence)
                self._progress.take(len(sentence))
                yield sentence
        # Whatever it is; train_tokenizer raises it again.
        except BaseException as error:
            self.error = error
            raise
        self._progress.begin_training()


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        for begin in range(0, len(line), _LINE_CHARACTERS):
            yield line[begin : begin + _LINE_CHARACTERS]


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        chunk = ""
        for line in _lines(text):
            if chunk and len(chunk) + len(line) > _CHUNK_CHARACTERS:
                yield chunk
                chunk = ""
            chunk += line
        if chunk:
            yield chunk


@dataclass(frozen=True)
class TokenizerSettings:
    """What a tokenizer is trained on and how."""

    inputs: sources.InputSettings
    vocabulary_size: int
    model_type: str
    sample_bytes: int  # about this much text is trained on, drawn from everywhere in the corpus


def sample_corpus(settings: TokenizerSettings, scan: sources.Scan, progress: TrainingProgress) -> Iterator[str]:
    """The chunks of the corpus whose content hash falls below sample_bytes / bytes of the input files, in corpus order.

    The choice is a pure function of each chunk's content and the corpus's size, so it has no favourites among files
    or parts of a file. For compressed inputs the bytes are the compressed ones: the sample grows by their ratio.
    """
    limit = int(min(1.0, settings.sample_bytes / max(1, scan.bytes)) * 2**64)
    for piece in scan.pieces:
        for document in documents(piece, settings.inputs):
            progress.read(len(document.text))
            for chunk in _chunks([document.text.decode()]):
                if int.from_bytes(hashlib.blake2b(chunk.encode(), digest_size=8).digest(), "big") < limit:
                    yield chunk


class MadeTokenizer(NamedTuple):
    """A tokenizer in its file."""

    tokenizer: Tokenizer
    is_new: bool
    """Whether it was trained now."""
    passed_over: Mapping[str, int]
    """How many of each kind of thing in the inputs were not read."""


def make_tokenizer(settings: TokenizerSettings, output: Path, progress: bool = False) -> MadeTokenizer:
    """Train a tokenizer into ``output`` unless it is there already, made from the same inputs with the same settings.

    ``OUTPUT.json`` beside it records the settings. Both files appear atomically. With ``progress`` a line on
    stderr says every few seconds how far it is.

    Raises:
        DataError: no input, unreadable text, or an existing output that was made otherwise, naming what differs.
    """
    scan = sources.scan(settings.inputs)
    record_path = output.with_name(output.name + ".json")
    content = asdict(settings)
    del content["inputs"]["inputs"]  # paths: the sources' fingerprints say more
    # through JSON, which turns tuples to lists as they come back from the file
    record = json.loads(json.dumps({"settings": content, "sources": scan.summaries()}))
    if output.exists():
        _check_same(output, record_path, record)
        return MadeTokenizer(Tokenizer.load(output), False, scan.passed_over)
    output.parent.mkdir(parents=True, exist_ok=True)
    counted = TrainingProgress(scan.bytes)
    with waiting.told(counted.line, waiting.to_stderr) if progress else contextlib.nullcontext():
        texts = sample_corpus(settings, scan, counted)
        try:
            model = train_tokenizer(texts, settings.vocabulary_size, settings.model_type, counted)
        except UntrainableError as error:
            raise DataError(f"{', '.join(settings.inputs.inputs)}: {error}") from error
    write_atomically(record_path, json.dumps(record | {"sha256": hashlib.sha256(model).hexdigest()}, indent=1).encode())
    write_atomically(output, model)
    return MadeTokenizer(Tokenizer.load(output), True, scan.passed_over)


def _check_same(output: Path, record_path: Path, record: dict) -> None:
    hint = "choose another output or remove it"
    try:
        existing = json.loads(record_path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            f"{output} exists without {record_path.name}, so it was not made by this tool; {hint}"
        ) from error
    except ValueError as error:
        raise DataError(f"{record_path}: not valid JSON ({error}); {hint}") from error
    differences = sources.differences(existing, record)
    if differences:
        raise DataError(f"{output} exists and was made otherwise: {'; '.join(differences)}; {hint}")
