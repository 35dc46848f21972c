"""How fast the data layer is, as ratios: the build to bare sentencepiece, the loader to what a model consumes."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import sentencepiece

from card_scale.corpus import sources
from card_scale.corpus.build import BuildSettings, build_dataset
from card_scale.corpus.source_documents import documents
from card_scale.data.loader import GlobalBatchLoader
from card_scale.data.stream import PackedStream
from card_scale.environment import environment


@dataclass(frozen=True)
class BuildResult:
    """Seconds of each round, taken in turn, and the ratio of the medians' throughputs."""

    text_bytes: int
    documents: int
    workers: int
    bare_seconds: tuple[float, ...]
    build_seconds: tuple[float, ...]
    ratio: float  # build throughput / bare throughput, 1 where the build costs nothing beside encoding


@dataclass(frozen=True)
class LoaderResult:
    """Throughput of one rank's loader."""

    length: int
    global_batch: int
    steps: int
    tokens_per_second: float
    consumption: float | None  # tokens per second of the model it is compared with
    ratio: float | None


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def measure_build(settings: BuildSettings, tokenizer_path: Path, workers: int, rounds: int) -> BuildResult:
    """Compare a whole build with encoding the same text, already in memory, by sentencepiece's own threads.

    The build's time holds everything from reading the inputs to the manifest, the start of its processes included.
    Bare encoding is done both ways that sentencepiece offers, lists and arrays; the faster counts in each round.

    Raises:
        DataError: unreadable or empty inputs.
    """
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    scan = sources.scan(settings.inputs)
    texts = [document.text for piece in scan.pieces for document in documents(piece, settings.inputs)]
    texts = [text for text in texts if text]
    bare, build = [], []
    for _ in range(rounds):
        bare.append(
            min(
                _seconds(lambda: processor.encode(texts, return_type=int, num_threads=workers)),
                _seconds(lambda: processor.encode(texts, return_type="numpy", num_threads=workers)),
            )
        )
        with tempfile.TemporaryDirectory() as directory:
            output = Path(directory, "dataset")
            build.append(_seconds(lambda: build_dataset(settings, tokenizer_path, output, workers)))  # noqa: B023
    ratio = statistics.median(bare) / statistics.median(build)
    return BuildResult(sum(map(len, texts)), len(texts), workers, tuple(bare), tuple(build), ratio)


def measure_loader(
    directory: Path, length: int, global_batch: int, steps: int, consumption: float | None
) -> LoaderResult:
    """Read ``steps`` training batches as fast as they come, each document's check at its first reading included.

    Raises:
        DataError: a dataset that cannot be read.
    """
    stream = PackedStream(directory, "train", 0, length)
    with GlobalBatchLoader(
        stream, global_batch=global_batch, micro_batch=1, data_parallel_rank=0, data_parallel_size=1, seed=0
    ) as loader:
        seconds = _seconds(lambda: [loader.rank_batch(step) for step in range(steps)])
    speed = steps * global_batch * length / seconds
    return LoaderResult(length, global_batch, steps, speed, consumption, speed / consumption if consumption else None)


def table(build: BuildResult | None, loader: LoaderResult | None) -> str:
    """The results as lines of text."""
    lines = []
    if build:
        bare, whole = statistics.median(build.bare_seconds), statistics.median(build.build_seconds)
        lines += [
            f"{'encoding':<24}{'MB/s':>10}{'seconds':>10}   ({build.workers} cores, {build.documents} documents)",
            f"{'bare sentencepiece':<24}{build.text_bytes / bare / 1e6:>10.2f}{bare:>10.2f}",
            f"{'build':<24}{build.text_bytes / whole / 1e6:>10.2f}{whole:>10.2f}",
            f"{'build / bare':<24}{build.ratio:>10.2f}",
        ]
    if loader:
        lines.append(
            f"{'loader':<24}{loader.tokens_per_second:>10.3g} tokens/s "
            f"(length {loader.length}, batch {loader.global_batch})"
        )
        if loader.ratio is not None:
            lines.append(
                f"{'loader / consumption':<24}{loader.ratio:>10.1f}   ({loader.consumption:g} tokens/s consumed)"
            )
    return "\n".join(lines)


def as_json(build: BuildResult | None, loader: LoaderResult | None) -> dict[str, object]:
    """The results and where they were measured, as JSON values."""
    return {
        "environment": environment(),
        "build": asdict(build) if build else None,
        "loader": asdict(loader) if loader else None,
    }
