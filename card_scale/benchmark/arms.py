"""Arms of the step-latency benchmark: an objective, the attention backend that computes it, and its block size."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from card_scale.config import Config, nearest
from card_scale.errors import ConfigurationError

OBJECTIVES = ("ar", "card", "mdlm", "bd3lm")
BACKENDS = ("auto", "sdpa", "flex", "split", "dense")
_NAME = re.compile(r"(?P<objective>[a-z0-9]+)(?:-(?P<backend>[a-z]+))?(?:-b(?P<block>\d+))?")


class Arm(NamedTuple):
    """What is timed against the others on the same layers."""

    objective: str
    backend: str = "auto"
    block: int = 0
    """Block size of bd3lm, 0 for the other objectives."""

    @property
    def name(self) -> str:
        """The arm as the command line and every report call it, e.g. ``card``, ``bd3lm-flex-b16``."""
        parts = [self.objective]
        if self.backend != "auto":
            parts.append(self.backend)
        if self.block:
            parts.append(f"b{self.block}")
        return "-".join(parts)


def parse(names: Sequence[str], blocks: Sequence[int]) -> list[Arm]:
    """Return the arms called ``names``, in order and each once; a bd3lm arm without a block stands for one per block.

    Raises ConfigurationError for a name that is not OBJECTIVE[-BACKEND][-bBLOCK] of known parts.
    """
    arms = [arm for name in names for arm in _parse(name, blocks)]
    return list(dict.fromkeys(arms))


def _parse(name: str, blocks: Sequence[int]) -> Iterable[Arm]:
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise ConfigurationError(f"arm {name!r} is not of the form OBJECTIVE[-BACKEND][-bBLOCK], e.g. bd3lm-flex-b16")
    objective, backend = matched["objective"], matched["backend"] or "auto"
    for part, value, valid in (("objective", objective, OBJECTIVES), ("backend", backend, BACKENDS)):
        if value not in valid:
            raise ConfigurationError(f"arm {name!r}: unknown {part} {value!r}{nearest(value, valid)}")
    if objective != "bd3lm":
        if matched["block"]:
            raise ConfigurationError(f"arm {name!r}: only bd3lm has blocks")
        return [Arm(objective, backend)]
    sizes = [int(matched["block"])] if matched["block"] else blocks
    if not sizes:
        raise ConfigurationError(f"arm {name!r} names no block size; write {name}-b16 or give --blocks")
    if min(sizes) < 1:
        raise ConfigurationError(f"arm {name!r}: block size {min(sizes)} is not valid; it must be at least 1")
    return [Arm(objective, backend, size) for size in sizes]


def config_of(arm: Arm, base: Config) -> Config:
    """Return ``base`` with the arm's objective and attention.

    Raises ConfigurationError where the arm cannot be run so, e.g. a block that does not divide ``model.length``.
    """
    objective: dict[str, Any] = {"name": arm.objective} | ({"block": arm.block} if arm.block else {})
    model: dict[str, Any] = {"attention_backend": arm.backend}
    config = dataclasses.replace(
        base,
        objective=dataclasses.replace(base.objective, **objective),
        model=dataclasses.replace(base.model, **model),
    )
    config.check()
    return config


def with_sizes(base: Config, *, length: int, micro_batch: int, global_batch: int) -> Config:
    """Return ``base`` with another length, in tokens, and other batch sizes, in sequences."""
    return dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, length=length),
        train=dataclasses.replace(base.train, micro_batch=micro_batch, global_batch=global_batch),
    )


def comparisons(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Return the pairs (arm, base) whose ratio is reported.

    CARD over AR, every diffusion arm over CARD, each with the best kernel of both; and where CARD was also run with the
    arm's own backend, the two on that one backend.
    """
    pairs = []
    card, ar = Arm("card"), Arm("ar")
    if card in arms and ar in arms:
        pairs.append((card, ar))
    for arm in arms:
        same_backend = Arm("card", arm.backend)
        if arm.objective in ("mdlm", "bd3lm"):
            pairs += [(arm, base) for base in dict.fromkeys((card, same_backend)) if base in arms]
    return pairs
