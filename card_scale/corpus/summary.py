"""A dataset in words: its sizes, and documents and samples as a reader would see them."""

import json
import tarfile
from pathlib import Path

import numpy as np

from card_scale.corpus.verify import member_bytes
from card_scale.data.manifest import Manifest, check_sizes, load_excluded, load_index
from card_scale.data.shards import NPY_HEADER_BYTES
from card_scale.data.stream import PackedStream
from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError

_FEW_DOCUMENTS, _FEW_SAMPLES = 100, 16
_SAMPLE_TOKENS = 1024
_SPREAD = 0.5  # nats a token, for a warning to have a number


def describe(directory: Path) -> str:
    """The manifest as a few lines of text.

    Raises:
        DataError: no readable manifest.
    """
    manifest = Manifest.load(directory)
    counts = manifest.counts
    tokens = sum(split.tokens - split.documents for split in manifest.splits.values())  # without each document's EOS
    lines = [
        f"{directory}: format {manifest.format}, digest {manifest.digest}",
        f"tokenizer: {manifest.vocabulary_size} pieces, tokens stored as {manifest.dtype}, "
        f"{counts['text_bytes'] / max(1, tokens):.3f} bytes per token",
        f"documents: {counts['documents']}, {counts['text_bytes']} bytes of text; left out {counts['empty_dropped']} "
        f"empty, {counts.get('null_skipped', 0)} null, {counts['invalid_skipped']} not UTF-8",
    ]
    lines += [f"this tokenizer rewrites text: {rewriting}" for rewriting in manifest.rewrites]
    for name, split in manifest.splits.items():
        size = sum(shard.bytes for shard in split.shards)
        lines.append(
            f"{name}: {split.documents} documents, {split.tokens} tokens, {len(split.shards)} shards, {size} bytes"
        )
    lines.append(_decontamination(manifest))
    lines += [
        f"source {source['name']}: {source['files']} files, {source['bytes']} bytes" for source in manifest.sources
    ]
    return "\n".join(lines)


def validation_warning(manifest: Manifest) -> str | None:
    """What to know of a validation split that is too small to tell losses apart; None where it is not."""
    validation = manifest.splits["validation"]
    samples = validation.tokens // _SAMPLE_TOKENS
    if not validation.documents or (validation.documents >= _FEW_DOCUMENTS and samples >= _FEW_SAMPLES):
        return None
    error = _SPREAD / validation.documents**0.5
    return (
        f"validation holds only {validation.documents} documents with {validation.tokens} tokens, {samples} samples of "
        f"{_SAMPLE_TOKENS}: where the losses of documents spread by {_SPREAD} nats a token, their mean has a standard "
        f"error of {error:.2f}; hold out more with --validation-fraction, or make more documents of long ones with "
        "--split-documents"
    )


def _decontamination(manifest: Manifest) -> str:
    record = manifest.decontamination
    if record is None:
        return "decontamination: not decontaminated"
    validation, own = manifest.splits["validation"], manifest.splits["train"].digest
    trains = [
        f"{'its own train' if split.digest == own else f'train {split.digest}'} ({split.documents} documents)"
        for split in record.against
    ]
    by_share = ", ".join(f"{share}: {count}" for share, count in record.documents_by_share.items())
    return (
        f"decontamination: against {', '.join(trains)}; {record.excluded_documents} of {validation.documents} "
        f"validation documents, {record.excluded_tokens} of {validation.tokens} tokens are excluded: {record.copies} "
        f"copies, the others share at least {record.threshold:g} of their {record.ngram}-grams with train\n"
        f"  {record.shared_ngrams} of {record.ngrams} {record.ngram}-grams of validation are in train; documents by "
        f"the share that is: {by_share}, of {record.documents}"
    )


def show_documents(directory: Path, split: str, first: int, count: int, characters: int) -> str:
    """Documents of a split in the index's order: origin, length, whether excluded, and the start of their text.

    Raises:
        DataError: no readable manifest, index, tokenizer or shard.
    """
    manifest = Manifest.load(directory)
    check_sizes(directory, manifest)
    tokenizer = Tokenizer.load(directory / manifest.tokenizer.name)
    records = manifest.splits[split]
    index = load_index(directory, records)
    excluded = set(load_excluded(directory, manifest, split).tolist())
    lines = []
    for number, row in enumerate(index[first : first + count], start=first):
        shard = directory / records.shards[row["shard"]].name
        offset, length = int(row["offset"]), int(row["tokens"])
        tokens = np.memmap(shard, dtype=manifest.dtype, mode="r", offset=offset, shape=(length,))
        text = tokenizer.decode(tokens)[:characters]
        note = ", excluded as contaminated" if number in excluded else ""
        lines.append(f"--- {split} document {number}: {_origin(shard, offset)}, {length} tokens{note}\n{text}")
    return "\n".join(lines)


def _origin(shard: Path, token_offset: int) -> str:
    """What the JSON member of the document says whose tokens stand at an offset of a shard.

    Raises DataError, naming the shard, where it says nothing.
    """
    content = b""
    try:
        with tarfile.open(shard, mode="r:") as archive:
            for member in archive:
                if member.offset_data + NPY_HEADER_BYTES == token_offset:
                    break
                if member.name.endswith(".json"):
                    content = member_bytes(archive, member)
        description = json.loads(content)
        part = f", part {description['part']}" if "part" in description else ""
        return f"{description['source']}, record {description['record']}{part}"
    except (tarfile.TarError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{shard}: does not say where the document at byte {token_offset} is from ({error}); tools/data.py verify "
            "shows all damage"
        ) from None


def show_samples(directory: Path, split: str, seed: int, length: int, first: int, count: int) -> str:
    """Packed samples as text; control symbols by their names in angle or square brackets.

    Raises:
        DataError: a dataset that cannot be read, or is shorter than a sample.
    """
    stream = PackedStream(directory, split, seed, length)
    tokenizer = Tokenizer.load(stream.tokenizer_path)
    sample_ids = np.arange(first, min(first + count, stream.sample_count))
    lines = []
    for sample_id, tokens in zip(sample_ids.tolist(), stream.samples(sample_ids), strict=True):
        lines.append(f"--- {split} sample {sample_id} of {stream.sample_count}\n{_readable(tokenizer, tokens)}")
    return "\n".join(lines)


def _readable(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    text = []
    begin = 0
    for place in [*np.flatnonzero(np.isin(tokens, list(tokenizer.control_ids))).tolist(), len(tokens)]:
        text.append(tokenizer.decode(tokens[begin:place]))
        if place < len(tokens):
            text.append(tokenizer.piece(tokens[place]))
        begin = place + 1
    return "".join(text)
