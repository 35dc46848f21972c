"""Whether a training step fits into a rank's memory, by the estimate, and which settings would take less: before a run,
and where one has run out of it."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import psutil
import torch

from card_scale.config import Config
from card_scale.cost.memory import MemoryByCause, step_memory
from card_scale.distributed import parallel_dims
from card_scale.engine.selection import engine_kind
from card_scale.errors import ConfigurationError, OutOfMemory

TIGHT = 0.9
"""Share of a memory above which the estimate, which leaves libraries and fragments out, promises nothing."""


class Memory(NamedTuple):
    """What a rank may take."""

    bytes: float
    what: str
    """It, in words."""
    is_host: bool
    """Whether it is the host's, which holds what an engine offloads as well."""
    device_bytes: float | None = None
    """Of the whole device, where ``bytes`` is what is free of it: kernels are chosen by it."""


class Change(NamedTuple):
    """A setting that takes less memory."""

    setting: str
    """``group.key=value``, or words."""
    bytes: float
    """That a rank then needs."""


def memory_of_a_rank(ranks: int, device_gib: float | None) -> Memory:
    """Return the memory of a rank: ``device_gib`` where that is stated, else this machine's GPU, else its share of what
    is free in this machine, among as many of the ``ranks`` as torchrun starts here, by default all."""
    if device_gib is not None:
        return Memory(device_gib * 2**30, "stated", is_host=False)
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Memory(device.total_memory, device.name, is_host=False)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    of = f"a share of what is free in this machine, which has no GPU, among {here} rank{'s' * (here > 1)}"
    return Memory(psutil.virtual_memory().available / here, of, is_host=True)


def needed(config: Config, ranks: int, vocabulary_rows: int, memory: Memory) -> MemoryByCause:
    """Estimate the memory of a step on one of so many ranks, offloaded states included (:func:`step_memory`)."""
    dims, stage = parallel_dims.plan(config, ranks), engine_kind(config).zero_stage(config)
    device_bytes = None if memory.is_host else memory.device_bytes or memory.bytes
    return step_memory(config, dims, stage, vocabulary_rows, device_bytes=device_bytes)


def needed_bytes(config: Config, ranks: int, vocabulary_rows: int, memory: Memory) -> float:
    """Return the bytes of it that lie in ``memory``: on a device not what the engine offloads."""
    causes = needed(config, ranks, vocabulary_rows, memory)
    offloaded = frozenset() if memory.is_host else engine_kind(config).offloaded(config)
    return sum(size for cause, size in causes._asdict().items() if cause not in offloaded)


def verdict(config: Config, ranks: int, vocabulary_rows: int, memory: Memory) -> list[str]:
    """Say whether a step fits, and where it does not or hardly does, the three settings that help most."""
    bytes_ = needed_bytes(config, ranks, vocabulary_rows, memory)
    words = f"a rank needs about {_gib(bytes_)} of {_gib(memory.bytes)} ({memory.what})"
    if bytes_ <= TIGHT * memory.bytes:
        return [f"fits: {words}"]
    begin = "does not fit" if bytes_ > memory.bytes else "hardly fits"
    helps = [f"  {words}" for words in _what_helps(config, ranks, vocabulary_rows, memory)]
    return [f"{begin}: {words}", *helps]


@contextlib.contextmanager
def explained(config: Config, ranks: int, vocabulary_rows: int, place: Callable[[], tuple[str, int]]) -> Iterator[None]:
    """Context manager that turns a device's want of memory into OutOfMemory, which says where and what helps most.

    ``place`` returns the phase, one of the watchdog's, and the update that it is of.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        phase, step = place()
        memory = memory_of_a_rank(ranks, None)
        estimate = _gib(needed_bytes(config, ranks, vocabulary_rows, memory))
        helps = ", ".join(_what_helps(config, ranks, vocabulary_rows, memory))
        raise OutOfMemory(
            f"out of memory ({phase}, step {step}): a rank has {_gib(memory.bytes)}, a step takes about {estimate} by "
            f"the estimate; {helps or 'no setting takes less: take a smaller model'}. {str(error).splitlines()[0]}"
        ) from error


def _what_helps(config: Config, ranks: int, vocabulary_rows: int, memory: Memory) -> list[str]:
    """Say what a rank would need with each of the three settings that help most."""
    changes = sorted(smaller(config, ranks, vocabulary_rows, memory), key=lambda change: change.bytes)[:3]
    return [f"about {_gib(change.bytes)} with {change.setting}" for change in changes]


def smaller(config: Config, ranks: int, vocabulary_rows: int, memory: Memory) -> Iterator[Change]:
    """Yield the settings, changed one at a time, that are possible and take less memory."""
    before = needed_bytes(config, ranks, vocabulary_rows, memory)
    for setting, changed, of_ranks in _changes(config, ranks):
        try:
            changed.check()
            dims = parallel_dims.plan(changed, of_ranks)
            engine_kind(changed).check(changed, dims)
            bytes_ = needed_bytes(changed, of_ranks, vocabulary_rows, memory)
        except ConfigurationError:
            continue  # not possible here
        if bytes_ < before:
            yield Change(setting, bytes_)


def _changes(config: Config, ranks: int) -> Iterator[tuple[str, Config, int]]:
    """Yield (setting in words, configuration, ranks) of what may be tried."""

    def with_key(key: str, value: Any) -> Config:
        group, _, name = key.partition(".")
        return dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **{name: value})})

    values = [
        ("train.micro_batch", max(1, config.train.micro_batch // 2)),
        ("train.precision", "bf16"),
        ("parallel.recompute", "selective"),
        ("parallel.recompute", "full"),
        ("parallel.zero", 3),
        ("model.attention_backend", "auto"),
        ("model.loss_backend", "chunked"),
    ]
    now = config.flat()
    for key, value in values:
        if now[key] != value:
            yield f"{key}={value}", with_key(key, value), ranks
    for key in ("parallel.tensor", "parallel.pipeline"):
        yield f"{key}={2 * now[key]}", with_key(key, 2 * now[key]), ranks
    yield f"twice the ranks ({2 * ranks})", config, 2 * ranks


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"
