"""Training a tokenizer: a deterministic sample of the corpus, then sentencepiece with text kept as it is."""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import sentencepiece

from card_scale.corpus import sources
from card_scale.corpus.source_documents import documents
from card_scale.data.tokenizer import BOS_ID, EOS_ID, MASK_PIECE, PAD_ID, UNK_ID, Tokenizer
from card_scale.errors import DataError
from card_scale.files import write_atomically

SMALLEST_VOCABULARY = 256 + 5 + 1  # the byte pieces, the special symbols, and something to learn

# Sentencepiece trains on "sentences". Chunks of whole lines keep line breaks, and with them indentation, inside the
# sample, so that pieces such as "):\n" can be learnt: 6 % fewer tokens on Python sources than line by line.
_CHUNK_CHARACTERS = 2000
# Written into the model file, and the summation order of unigram training depends on it: a constant, not the machine's.
_THREADS = 16
# Below 1.0, so that the rarest characters are left to the byte pieces and these appear in training data.
_CHARACTER_COVERAGE = 0.9995


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, model_type: str = "bpe") -> bytes:
    """Train a sentencepiece model with byte fallback and the fixed special ids.

    The text is kept as it is: identity normalisation, no dummy prefix, whitespace kept and allowed to form pieces,
    digits split. The result is a pure function of the arguments.

    Args:
        texts: documents, in an order that is part of the input.
        vocabulary_size: pieces, the 256 byte pieces and five special symbols included.
        model_type: ``bpe`` trains in seconds and packs tighter, ``unigram`` encodes several times faster.

    Returns:
        The content of a model file.

    Raises:
        DataError: no text, or a vocabulary that the text cannot fill or is too small to hold; naming the numbers.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise DataError(
            f"vocabulary size {vocabulary_size}: at least {SMALLEST_VOCABULARY} are needed "
            "(256 bytes, 5 special symbols and a character)"
        )
    chunks = _chunks(texts)
    first = next(chunks, None)
    if first is None:
        raise DataError("no text to train a tokenizer on: every document is empty or the sample too small")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_with_first(first, chunks),
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
            max_sentence_length=1 << 24,  # a single long line is one chunk; the default would drop it silently
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(
            f"sentencepiece cannot train a vocabulary of {vocabulary_size} on this text: {error}"
        ) from error
    return model.getvalue()


def _with_first(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        chunk = ""
        for line in text.splitlines(keepends=True):
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


def sample_corpus(settings: TokenizerSettings, scan: sources.Scan) -> Iterator[str]:
    """The chunks of the corpus whose content hash falls below sample_bytes / bytes of the input files, in corpus order.

    The choice is a pure function of each chunk's content and the corpus's size, so it has no favourites among files
    or parts of a file. For compressed inputs the bytes are the compressed ones: the sample grows by their ratio.
    """
    limit = int(min(1.0, settings.sample_bytes / max(1, scan.bytes)) * 2**64)
    for piece in scan.pieces:
        for document in documents(piece, settings.inputs):
            for chunk in _chunks([document.text.decode()]):
                if int.from_bytes(hashlib.blake2b(chunk.encode(), digest_size=8).digest(), "big") < limit:
                    yield chunk


def make_tokenizer(settings: TokenizerSettings, output: Path) -> tuple[Tokenizer, bool]:
    """Train a tokenizer into ``output`` unless it is there already, made from the same inputs with the same settings.

    ``OUTPUT.json`` beside it records the settings. Both files appear atomically.

    Returns:
        The tokenizer, and whether it was trained now.

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
        return Tokenizer.load(output), False
    output.parent.mkdir(parents=True, exist_ok=True)
    model = train_tokenizer(sample_corpus(settings, scan), settings.vocabulary_size, settings.model_type)
    write_atomically(record_path, json.dumps(record | {"sha256": hashlib.sha256(model).hexdigest()}, indent=1).encode())
    write_atomically(output, model)
    return Tokenizer.load(output), True


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
