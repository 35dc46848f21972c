"""Comparison of trajectories with that of one rank, and its report."""

import dataclasses
import math

from card_scale.config import Config, ParallelConfig
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import STEPS, Trajectory, run_variants

TOLERANCE = 1e-5
"""Largest relative difference of a loss or norm at any step, and of a state after the last."""


def label(config: Config) -> str:
    """Return a configuration's cell of the matrix in short: ``zero3 sp tied``."""
    parallel, model, train, objective = config.parallel, config.model, config.train, config.objective
    zero = "zero from the JSON" if parallel.zero is None else f"zero{parallel.zero}"
    parts = [
        "fsdp2" if parallel.engine == "fsdp2" else zero,
        "sp" if parallel.sequence else "",
        "tied" if model.tie_embeddings else "",
        "interleaved" if parallel.virtual_pipeline > 1 else "",
        "recompute" if parallel.recompute != "none" else "",
        model.attention_backend if model.attention_backend != "auto" else "",
        "dropout" if model.dropout else "",
        f"micro_batch={train.micro_batch}",
        "bf16" if train.precision == "bf16" else "",
        "ema" if config.optimizer.ema else "",
        parallel.deepspeed.rpartition("/")[2] if parallel.deepspeed else "",
        objective.name if objective.name != "card" else "",
        f"kv_heads={model.kv_heads}" if model.kv_heads else "",
        *(
            f"{field.name}={getattr(objective, field.name)}"
            for field in dataclasses.fields(objective)
            if getattr(objective, field.name) != field.default
        ),
    ]
    return " ".join(part for part in parts if part)


def one_rank(config: Config) -> Config:
    """Return the configuration that trains the same on one rank, in the plainest way: no sharding, no micro-batches.

    DeepSpeed's stage 0 does not train in bf16; stage 1 on one rank shards nothing. The plainest attention of two
    streams is the one with the whole mask.
    """
    zero = 1 if config.train.precision == "bf16" else 0
    backend = "dense" if config.objective.name in ("bd3lm", "armd") else "auto"
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, attention_backend=backend, loss_backend="torch"),
        parallel=ParallelConfig(zero=zero),
        train=dataclasses.replace(config.train, micro_batch=config.train.global_batch),
    )


class References:
    """Trajectories on one rank, each computed once."""

    def __init__(self):
        self._trajectories: dict[Config, Trajectory] = {}

    def of(self, configs: list[Config]) -> list[Trajectory]:
        """Return the one-rank trajectory of each configuration; those not yet known run in one process."""
        plain = [one_rank(config) for config in configs]
        unknown = list(dict.fromkeys(config for config in plain if config not in self._trajectories))
        if unknown:
            (found,) = run_ranks(run_variants, 1, unknown, deadline=deadline(unknown))
            self._trajectories.update(zip(unknown, found, strict=True))
        return [self._trajectories[config] for config in plain]


def deadline(configs: list[Config]) -> float:
    """Return seconds that suffice several times over for these configurations on two busy cores."""
    return 60.0 + 15.0 * len(configs)


def assert_parity(
    layout: tuple[int, int, int],
    configs: list[Config],
    ranks: list[list[Trajectory]],
    references: list[Trajectory],
    tolerance: float = TOLERANCE,
) -> None:
    """Raise AssertionError with a table of the cells that are not on their one-rank trajectory.

    Args:
        layout: (tensor, pipeline, data) sizes.
        configs: the cells.
        ranks: by rank, its trajectory of each cell.
        references: the one-rank trajectory of each cell.
        tolerance: largest relative difference.
    """
    bad = []
    for index, (config, reference) in enumerate(zip(configs, references, strict=True)):
        trajectories = [rank[index] for rank in ranks]
        faults = deviations(config, trajectories, reference, tolerance)
        if faults:
            bad.append(f"{label(config):40s} {'; '.join(faults)}")
    if bad:
        name = "x".join(map(str, layout))
        raise AssertionError(
            f"{len(bad)} of {len(configs)} cells of layout {name} leave the trajectory of one rank:\n" + "\n".join(bad)
        )


def deviations(
    config: Config, trajectories: list[Trajectory], reference: Trajectory, tolerance: float = TOLERANCE
) -> list[str]:
    """Return in words how the ranks' trajectories of a cell differ from the one-rank trajectory."""
    faults = []
    for name in ("losses", "norms"):
        expected = getattr(reference, name)
        found = [getattr(trajectory, name) for trajectory in trajectories]
        # Every rank reports the global value, so the worst rank decides at each step.
        errors = [
            max(_relative(values[step], value) for values in found)
            if len({len(expected), *map(len, found)}) == 1
            else math.inf
            for step, value in enumerate(expected)
        ]
        if not max(errors) <= tolerance:
            faults.append(f"{name} off by " + " ".join(f"{error:.0e}" for error in errors))
    for key, value in reference.state_sums.items():
        error = max(_relative(trajectory.state_sums.get(key, math.nan), value) for trajectory in trajectories)
        if not error <= tolerance:
            faults.append(f"final {key} off by {error:.0e}")
    if len(reference.losses) < STEPS:
        faults.append(f"only {len(reference.losses)} steps")
    norms = [norm for trajectory in (*trajectories, reference) for norm in trajectory.norms]
    if not (0 < config.optimizer.clip < min(norms) or config.optimizer.clip > max(norms)):
        faults.append(f"clip {config.optimizer.clip} neither below nor above all norms, {min(norms):.3g} at least")
    pairs = [trajectory.tied_equal for trajectory in trajectories if trajectory.tied_equal is not None]
    if config.model.tie_embeddings and config.parallel.pipeline > 1 and not (pairs and all(pairs)):
        faults.append("tied copies differ" if pairs else "no tied copies found")
    return faults


def _relative(found: float, expected: float) -> float:
    error = abs(found - expected) / abs(expected)
    return error if math.isfinite(error) else math.inf


def check_cells(
    references: References,
    layout: tuple[int, int, int],
    configs: list[Config],
    tolerance: float = TOLERANCE,
) -> list[list[Trajectory]]:
    """Run the cells in one set of ranks and assert their parity; return the trajectories by rank."""
    expected = references.of(configs)
    ranks = run_ranks(run_variants, math.prod(layout), configs, deadline=deadline(configs))
    assert_parity(layout, configs, ranks, expected, tolerance)
    return ranks
