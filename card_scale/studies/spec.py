"""The runs of a study: each cell's resolved configuration, with an id that names what it trains and evaluates."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from card_scale import config as configs
from card_scale.config import Config
from card_scale.errors import CardScaleError, ConfigurationError
from card_scale.laws.table import EPOCHS_TOLERANCE
from card_scale.objectives import registry
from card_scale.studies import datasets
from card_scale.studies.datasets import DatasetFacts
from card_scale.studies.grid import KEY_OF_AXIS, Cell, Grid, cells
from card_scale.training.run_directory import EVALUATION, MAY_CHANGE
from card_scale.training.steps import total_steps

# Data enters by its digests.
_NOT_HASHED = {key for key in MAY_CHANGE - EVALUATION if not key.startswith("guard.")} | {"data.validation"}
"""Keys that change neither what is trained nor what is evaluated."""

_SHOWN = 5


@dataclass(frozen=True)
class RunSpec:
    """One run of a study."""

    id: str
    """``ARM-SIZE-EPOCHSep-`` and ten digits of a hash of all that matters: the same in every version of a grid."""
    cell: Cell
    config: Config
    """Resolved; ``run.dir`` is the run's directory."""
    base: str
    overrides: tuple[str, ...]
    """Configuration file and ``group.key=value`` that make ``config``."""
    ranks: int
    corpus: DatasetFacts
    held_out: DatasetFacts
    samples_per_epoch: int
    steps: int

    @property
    def tokens(self) -> int:
        """Clean tokens that the run trains on."""
        return self.steps * self.config.train.global_batch * self.config.model.length

    @property
    def unique_tokens(self) -> int:
        """Distinct target tokens of an epoch: whole samples only."""
        return self.samples_per_epoch * self.config.model.length

    @property
    def unique_tokens_seen(self) -> int:
        """Distinct target tokens that the run trains on: fewer than an epoch's in a run shorter than one.

        One epoch in whole batches counts as whole, though the last part of a batch is missing: its run belongs with the
        longer ones on the same subset. :func:`specs` keeps that part below 1 %.
        """
        missing = self.unique_tokens - self.tokens
        return self.unique_tokens if missing <= EPOCHS_TOLERANCE * self.unique_tokens else self.tokens


def specs(grid: Grid, directory: Path) -> list[RunSpec]:
    """Return the study's runs, their directories under ``directory``.

    Raises ConfigurationError or DataError naming the cells that cannot be run and why, and cells that are the same run.
    """
    known: dict[tuple[str, str | None], tuple[DatasetFacts, DatasetFacts]] = {}
    found: list[RunSpec] = []
    problems: list[tuple[Cell, CardScaleError]] = []
    wanted = cells(grid)
    shortest = _shortest_epochs(wanted)
    for cell in wanted:
        try:
            found.append(_spec(grid, cell, directory, known, shortest))
        except CardScaleError as error:
            problems.append((cell, error))
    if problems:
        shown = "".join(f"\n  {_name(cell)}: {error}" for cell, error in problems[:_SHOWN])
        more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise type(problems[0][1])(f"{grid.path}: {len(problems)} of {len(wanted)} cells cannot be run:{shown}{more}")
    for identity, count in Counter(map(_identity, found)).items():
        if count > 1:
            same = " and ".join(_name(spec.cell) for spec in found if _identity(spec) == identity)
            raise ConfigurationError(f"{grid.path}: these cells are one and the same run: {same}")
    return found


def _shortest_epochs(wanted: list[Cell]) -> dict[tuple[str, int | None], float]:
    """Return the fewest epochs of any run by size and unique tokens: what the warm-up of branching runs is a share of.

    Arms and seeds must not differ in it.
    """
    shortest: dict[tuple[str, int | None], float] = {}
    for cell in wanted:
        key = (cell.size, cell.unique_tokens)
        shortest[key] = min(cell.epochs, shortest.get(key, cell.epochs))
    return shortest


def _spec(
    grid: Grid,
    cell: Cell,
    directory: Path,
    known: dict[tuple[str, str | None], tuple[DatasetFacts, DatasetFacts]],
    shortest: Mapping[tuple[str, int | None], float],
) -> RunSpec:
    keys = {**grid.overrides, **_size_and_arm(grid, cell)}
    keys |= {KEY_OF_AXIS[axis]: value for axis in KEY_OF_AXIS if (value := getattr(cell, axis)) is not None}
    keys["optimizer.schedule"] = "wsd" if grid.schedule == "wsd-branches" else grid.schedule
    if grid.min_lr_share is not None:
        keys["optimizer.min_lr"] = 0.0  # until the peak is known
    draft = configs.load(grid.config, _overrides(keys) + ["train.steps=null"])
    where = (draft.data.path, draft.data.validation)
    if where not in known:
        known[where] = datasets.pair(*where, grid.corpus)
    corpus, held_out = known[where]
    samples = _samples_per_epoch(draft, corpus)
    steps = _steps(draft, cell.epochs, samples)
    _check_whole_batches(draft, cell, steps, samples)
    if grid.warmup_share is not None:
        branching = grid.schedule == "wsd-branches"
        base = _steps(draft, shortest[cell.size, cell.unique_tokens], samples) if branching else steps
        keys["optimizer.warmup_steps"] = max(1, round(grid.warmup_share * base)) if grid.warmup_share else 0
    if grid.min_lr_share is not None:
        keys["optimizer.min_lr"] = grid.min_lr_share * draft.optimizer.lr
    if grid.evaluations is not None:
        keys["train.eval_every"] = -(-steps // grid.evaluations)
    keys["train.log_every"] = _log_every(grid, draft, samples)
    overrides = [*_overrides(keys), "train.steps=null"]
    config = configs.load(grid.config, overrides)
    if grid.schedule == "wsd-branches" and config.objective.learns_from_evaluation:
        raise ConfigurationError(
            "the objective takes over what evaluations find (objective.search_interval); they do not fall alike on a "
            "trunk; use schedule wsd"
        )
    # A warm-up of one update is none: its rate is the peak.
    if config.optimizer.warmup_steps >= max(2, steps):
        raise ConfigurationError(
            f"optimizer.warmup_steps is {config.optimizer.warmup_steps}, but the run has {steps} steps and would end "
            "before its schedule begins; set warmup_share, or a shorter warm-up"
        )
    run_digest = digest(config, corpus, held_out)
    id_ = _id(cell, run_digest, directory)
    overrides.append(f"run.dir={directory / 'runs' / id_}")
    return RunSpec(
        id=id_,
        cell=cell,
        config=configs.load(grid.config, overrides),
        base=grid.config,
        overrides=tuple(overrides),
        ranks=grid.ranks[cell.size],
        corpus=corpus,
        held_out=held_out,
        samples_per_epoch=samples,
        steps=steps,
    )


def _id(cell: Cell, run_digest: str, directory: Path) -> str:
    """Return a run's id; without the epochs where the study holds one that an earlier version named so."""
    earlier = f"{cell.arm}-{cell.size}-{run_digest}"
    is_known = (directory / "runs" / earlier).is_dir()
    return earlier if is_known else f"{cell.arm}-{cell.size}-{cell.epochs:g}ep-{run_digest}"


def _size_and_arm(grid: Grid, cell: Cell) -> dict[str, Any]:
    size, arm = grid.sizes[cell.size], grid.arms[cell.arm]
    both = sorted(set(size) & set(arm))
    if both:
        raise ConfigurationError(f"sizes.{cell.size} and arms.{cell.arm} both set {', '.join(both)}")
    return {**size, **arm}


def _log_every(grid: Grid, config: Config, samples_per_epoch: int) -> int:
    """Return the updates between log lines: no pass over the data is without one."""
    per_epoch = max(1, samples_per_epoch // config.train.global_batch)
    if grid.logs_per_epoch is None:
        return min(config.train.log_every or per_epoch, per_epoch)
    return max(1, per_epoch // grid.logs_per_epoch)


def _overrides(keys: Mapping[str, Any]) -> list[str]:
    """Return the keys as ``group.key=value`` of the command line. JSON is YAML, on one line."""
    return [f"{key}={json.dumps(value)}" for key, value in keys.items()]


def _samples_per_epoch(config: Config, corpus: DatasetFacts) -> int:
    """Return the samples of an epoch; the arithmetic of the packed stream, without opening it."""
    tokens = config.data.unique_tokens
    if tokens is not None and tokens > corpus.train_tokens:
        raise ConfigurationError(
            f"data.unique_tokens is {tokens}, but the train split of {config.data.path} has {corpus.train_tokens} "
            "tokens; build a larger corpus or choose a smaller subset"
        )
    count = corpus.train_tokens if tokens is None else tokens
    if count <= config.model.length:
        raise ConfigurationError(
            f"{config.data.path} has {count} training tokens; a sample of model.length = {config.model.length} needs "
            f"{config.model.length + 1}"
        )
    return (count - 1) // config.model.length


def _check_whole_batches(config: Config, cell: Cell, steps: int, samples_per_epoch: int) -> None:
    """Raise where a run of an epoch misses so much of the subset that it would be one of another subset."""
    batch, length = config.train.global_batch, config.model.length
    missing = samples_per_epoch - steps * batch
    if cell.epochs >= 1 and missing > EPOCHS_TOLERANCE * samples_per_epoch:
        whole = samples_per_epoch // batch * batch * length + 1
        raise ConfigurationError(
            f"one epoch of {samples_per_epoch} samples in whole batches of {batch} leaves out {missing} of them; "
            f"unique_tokens {whole} or {whole + batch * length} are whole batches"
        )


def _steps(config: Config, epochs: float, samples_per_epoch: int) -> int:
    with_epochs = dataclasses.replace(config, data=dataclasses.replace(config.data, epochs=epochs))
    return total_steps(with_epochs, samples_per_epoch)


def digest(config: Config, corpus: DatasetFacts, held_out: DatasetFacts) -> str:
    """Return the hash of what is trained and evaluated.

    Only keys that differ from their defaults enter: a key that a later version adds does not rename old runs.
    """
    objective = type(config.objective)
    defaults = Config(objective=objective()).flat() | {"objective.name": registry.DEFAULT}
    keys = {key: value for key, value in config.flat().items() if key not in _NOT_HASHED and value != defaults[key]}
    identity = json.dumps([keys, corpus.digest, held_out.validation_split], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:10]


def _identity(spec: RunSpec) -> tuple[str, str | None]:
    """What two cells share that are one run: corpora that are only stated are told apart by their paths."""
    return _hash_of(spec.id), None if spec.corpus.exists else spec.config.data.path


def _hash_of(id_: str) -> str:
    return id_.rpartition("-")[2]


def _name(cell: Cell) -> str:
    """Return a cell in words, without the axes that the base configuration decides."""
    return " ".join(f"{axis}={value}" for axis, value in cell._asdict().items() if value is not None)
