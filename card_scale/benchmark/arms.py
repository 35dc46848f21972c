"""Arms of the step-latency benchmark: an objective, the attention backend that computes it, and its block size."""

import dataclasses
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from card_scale.config import Config, ModelConfig, nearest
from card_scale.errors import ConfigurationError
from card_scale.objectives import registry

BACKENDS: tuple[str, ...] = typing.get_args(typing.get_type_hints(ModelConfig)["attention_backend"])
_NAME = re.compile(r"(?P<objective>[a-z0-9]+)(?:-(?P<backend>[a-z]+))?(?:-b(?P<block>\d+))?")


class Arm(NamedTuple):
    """What is timed against the others on the same layers."""

    objective: str
    backend: str = "auto"
    block: int = 0
    """Value of ``objective.block``, 0 for objectives without blocks and for one-token blocks."""

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
    """Return the arms called ``names``, each once; one with blocks that names none stands for one per block.

    Raises ConfigurationError for a name that is not OBJECTIVE[-BACKEND][-bBLOCK] of known parts.
    """
    arms = [arm for name in names for arm in _parse(name, blocks)]
    return list(dict.fromkeys(arms))


def _parse(name: str, blocks: Sequence[int]) -> Iterable[Arm]:
    matched = _NAME.fullmatch(name)
    if matched is None:
        raise ConfigurationError(f"arm {name!r} is not of the form OBJECTIVE[-BACKEND][-bBLOCK], e.g. bd3lm-flex-b16")
    objective, backend = matched["objective"], matched["backend"] or "auto"
    for part, value, valid in (("objective", objective, registry.names()), ("backend", backend, BACKENDS)):
        if value not in valid:
            raise ConfigurationError(f"arm {name!r}: unknown {part} {value!r}{nearest(value, valid)}")
    block = registry.keys(registry.objective_class(objective)).get("block")
    if block is None:
        if matched["block"]:
            raise ConfigurationError(f"arm {name!r}: {objective} has no blocks")
        return [Arm(objective, backend)]
    if block.default == 1 and not matched["block"]:
        return [Arm(objective, backend)]  # one-token blocks are what its name stands for
    sizes = [int(matched["block"])] if matched["block"] else blocks
    if not sizes:
        raise ConfigurationError(f"arm {name!r} names no block size; write {name}-b16 or give --blocks")
    if min(sizes) < 1:
        raise ConfigurationError(f"arm {name!r}: block size {min(sizes)} is not valid; it must be at least 1")
    return [Arm(objective, backend, size) for size in sizes]


def config_of(arm: Arm, base: Config) -> Config:
    """Return ``base`` with the arm's objective and attention; keys that both objectives have stay ``base``'s.

    Raises ConfigurationError where the arm cannot be run so, e.g. a block that does not divide ``model.length``.
    """
    kept = registry.keys(registry.objective_class(arm.objective)).keys() & registry.keys(type(base.objective)).keys()
    if arm.objective != base.objective.name:
        kept = kept - {"block"}  # the arm says it
    values: dict[str, Any] = {key: getattr(base.objective, key) for key in kept}
    if arm.block:
        values["block"] = arm.block
    backend: dict[str, Any] = {"attention_backend": arm.backend}
    config = dataclasses.replace(
        base,
        objective=registry.create(arm.objective, **values),
        model=dataclasses.replace(base.model, **backend),
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

    CARD over AR, every other objective over CARD, each with the best kernel of both; and where CARD was also run with
    the arm's own backend, the two on that one backend.
    """
    pairs = []
    card, ar = Arm("card"), Arm("ar")
    if card in arms and ar in arms:
        pairs.append((card, ar))
    for arm in arms:
        same_backend = Arm("card", arm.backend)
        if arm.objective not in ("ar", "card"):
            pairs += [(arm, base) for base in dict.fromkeys((card, same_backend)) if base in arms]
    return pairs
