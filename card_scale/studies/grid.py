"""A study's grid: one YAML file, read and checked, and the cells it asks for.

Axes are expanded in the order of :data:`AXES`. An axis takes its values from the last rule whose ``where`` matches the
axes before it, else from the grid's own list; an empty list leaves the cell out.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from card_scale.config import SCHEDULES, nearest, strict_yaml
from card_scale.errors import ConfigurationError

AXES = ("arm", "size", "unique_tokens", "epochs", "lr", "weight_decay", "dropout", "seed")
"""In the order of expansion. The first two are named; the others are lists of numbers."""

KEY_OF_AXIS: Mapping[str, str] = {
    "unique_tokens": "data.unique_tokens",
    "epochs": "data.epochs",
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "dropout": "model.dropout",
    "seed": "run.seed",
}
"""The configuration key that an axis sets."""

GRID_SCHEDULES = (*SCHEDULES, "wsd-branches")
"""Those of ``optimizer.schedule``, and branches: the decays of wsd runs that share one trunk."""

_REQUIRED = ("config", "arms", "sizes", "unique_tokens", "epochs")


class Cell(NamedTuple):
    """One run by the grid's axes; None leaves the base configuration's value."""

    arm: str
    size: str
    unique_tokens: int | None
    epochs: float
    lr: float | None
    weight_decay: float | None
    dropout: float | None
    seed: int | None


@dataclass(frozen=True)
class Rule:
    """Values of some axes for the cells that match."""

    where: Mapping[str, tuple[Any, ...]]
    values: Mapping[str, tuple[Any, ...]]

    def matches(self, chosen: Mapping[str, Any]) -> bool:
        """Return whether the axes chosen so far match."""
        return all(chosen[axis] in values for axis, values in self.where.items())


@dataclass(frozen=True)
class Hardware:
    """What the plan's hours are estimated from."""

    flops_per_second: float
    """Model FLOPs that one device makes in a second of training."""
    startup_seconds: float = 30.0
    """From the start of a run's process to its first step."""
    device: str | None = None
    """The device that the rate is of, where the grid names one."""


@dataclass(frozen=True)
class StatedCorpus:
    """What a corpus will hold that is not built yet: enough for a plan, not for a run."""

    vocabulary_size: int
    train_tokens: int
    validation_tokens: int


@dataclass(frozen=True)
class Slurm:
    """How a cluster's nodes look and what a job asks for."""

    devices_per_node: int = 8
    gpus: bool = True
    """Ask for a GPU for each rank; false on nodes without."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Further parameters of submitit: timeout_min, cpus_per_task, slurm_partition, slurm_account, ..."""


@dataclass(frozen=True)
class Grid:
    """A study as its YAML file describes it."""

    path: Path
    config: str
    """Base configuration of all runs."""
    overrides: Mapping[str, Any]
    """Dotted keys for all runs."""
    arms: Mapping[str, Mapping[str, Any]]
    """Dotted keys of each arm."""
    sizes: Mapping[str, Mapping[str, Any]]
    """Dotted keys of each size."""
    values: Mapping[str, tuple[Any, ...]]
    """Values of the numeric axes; (None,) where the base configuration decides."""
    rules: tuple[Rule, ...]
    schedule: str
    warmup_share: float | None
    """Warm-up steps as a share of the run (of the shortest branch's run); None keeps optimizer.warmup_steps."""
    min_lr_share: float | None
    """Final learning rate as a share of the peak; None keeps optimizer.min_lr."""
    evaluations: int | None
    """Evaluations in the course of each run; None keeps train.eval_every."""
    logs_per_epoch: int | None
    """Training lines in each epoch; None keeps train.log_every, but for a line in each epoch."""
    ranks: Mapping[str, int]
    """Training processes, one for each device, of each size."""
    hardware: Hardware
    corpus: StatedCorpus | None
    slurm: Slurm


def load(path: str | Path) -> Grid:
    """Read a grid file.

    Raises ConfigurationError naming the file, the key and what would be valid.
    """
    path = Path(path)
    try:
        tree = strict_yaml.load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigurationError(f"grid {path} cannot be read: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigurationError(f"grid {path} holds {type(tree).__name__}, not keys")
    return _Reader(path, tree).grid()


def cells(grid: Grid) -> list[Cell]:
    """Return the grid's cells in the order of their axes.

    Raises ConfigurationError for a rule that no cell meets, for the same cell twice, and for a grid without cells.
    """
    used: set[int] = set()
    found: list[Cell] = []

    def expand(chosen: dict[str, Any]) -> None:
        if len(chosen) == len(AXES):
            found.append(Cell(**chosen))
            return
        axis = AXES[len(chosen)]
        for value in _values_of(grid, axis, chosen, used):
            expand({**chosen, axis: value})

    expand({})
    for number, rule in enumerate(grid.rules):
        if number not in used:
            raise ConfigurationError(f"{grid.path}: rules[{number}] with where {dict(rule.where)} matches no cell")
    duplicates = sorted({str(cell) for cell in found if found.count(cell) > 1})
    if duplicates:
        raise ConfigurationError(f"{grid.path}: the same cell twice: {'; '.join(duplicates[:3])}")
    if not found:
        raise ConfigurationError(f"{grid.path}: no cell is left; every list of values is needed")
    return found


def _values_of(grid: Grid, axis: str, chosen: Mapping[str, Any], used: set[int]) -> Sequence[Any]:
    """Return an axis's values after the axes chosen; notes the rules that matched in ``used``."""
    if axis == "arm":
        return tuple(grid.arms)
    if axis == "size":
        return tuple(grid.sizes)
    values = grid.values[axis]
    for number, rule in enumerate(grid.rules):
        if axis in rule.values and rule.matches(chosen):
            used.add(number)
            values = rule.values[axis]
    return values


class _Reader:
    """Checks the parts of a grid file, one method each; every message begins with the file."""

    def __init__(self, path: Path, tree: dict[Any, Any]):
        self.path, self.tree = path, tree

    def grid(self) -> Grid:
        valid = {name for name in Grid.__dataclass_fields__ if name not in ("path", "values")} | set(KEY_OF_AXIS)
        for key in self.tree:
            if key not in valid:
                self.refuse(f"unknown key {key!r}{nearest(str(key), valid)}")
        for key in _REQUIRED:
            if key not in self.tree:
                self.refuse(f"{key} is missing")
        arms, sizes = self.overrides_by_name("arms"), self.overrides_by_name("sizes")
        schedule = self.tree.get("schedule", "cosine")
        if schedule not in GRID_SCHEDULES:
            self.refuse(f"schedule is {schedule!r}{nearest(str(schedule), GRID_SCHEDULES)}")
        if not isinstance(self.tree["config"], str):
            self.refuse(f"config is {self.tree['config']!r}, not the name of a file")
        values = {axis: self.numbers(axis, self.tree[axis], axis) for axis in KEY_OF_AXIS if axis in self.tree}
        return Grid(
            path=self.path,
            config=self.tree["config"],
            overrides=self.overrides("overrides", self.tree.get("overrides", {})),
            arms=arms,
            sizes=sizes,
            values={axis: values.get(axis, (None,)) for axis in KEY_OF_AXIS},
            rules=self.rules(arms, sizes),
            schedule=schedule,
            warmup_share=self.share("warmup_share"),
            min_lr_share=self.share("min_lr_share"),
            evaluations=self.count("evaluations", self.tree.get("evaluations")),
            logs_per_epoch=self.count("logs_per_epoch", self.tree.get("logs_per_epoch")),
            ranks=self.ranks(sizes),
            hardware=self.hardware(self.tree.get("hardware", {})),
            corpus=self.corpus(self.tree.get("corpus")),
            slurm=self.slurm(self.tree.get("slurm", {})),
        )

    def refuse(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{self.path}: {message}")

    def mapping(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.refuse(f"{name} is {value!r}, not names and values")
        return value

    def overrides(self, name: str, value: Any) -> dict[str, Any]:
        """Dotted keys; keys that belong to an axis or to the runner are refused."""
        overrides = self.mapping(name, value)
        reserved = {key: f"the axis {axis}" for axis, key in KEY_OF_AXIS.items()}
        reserved |= {"run.dir": "the study's directory", "optimizer.schedule": "schedule", "train.steps": "epochs"}
        for key in overrides:
            if key in reserved:
                self.refuse(f"{name} sets {key}, which {reserved[key]} decides")
            try:
                json.dumps(overrides[key])  # as which it goes to the run
            except TypeError:  # a set
                self.refuse(
                    f"{name}.{key} is {overrides[key]!r}; a key takes text, a number, true, false, null or a list"
                )
        return overrides

    def overrides_by_name(self, name: str) -> dict[str, dict[str, Any]]:
        named = self.mapping(name, self.tree[name])
        if not named:
            self.refuse(f"{name} is empty")
        for key in named:
            if not key or not set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-"):
                self.refuse(f"{name}.{key}: a name takes letters, digits and . _ + - (it becomes a directory)")
        return {key: self.overrides(f"{name}.{key}", value) for key, value in named.items()}

    def numbers(self, name: str, value: Any, axis: str) -> tuple[float, ...]:
        """A list of the axis's values, or one; numbers in quotes are numbers."""
        values = value if isinstance(value, list) else [value]
        return tuple(self.number(f"{name}[{place}]", item, axis) for place, item in enumerate(values))

    def number(self, name: str, value: Any, axis: str) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        whole = axis in ("unique_tokens", "seed")
        if not math.isfinite(number) or (whole and number != int(number)):
            self.refuse(f"{name} is {value!r}, not a {'whole ' if whole else ''}number")
        return int(number) if whole else number

    def rules(self, arms: Mapping[str, Any], sizes: Mapping[str, Any]) -> tuple[Rule, ...]:
        listed = self.tree.get("rules", [])
        if not isinstance(listed, list):
            self.refuse("rules is not a list")
        return tuple(self.rule(f"rules[{number}]", rule, arms, sizes) for number, rule in enumerate(listed))

    def rule(self, name: str, value: Any, arms: Mapping[str, Any], sizes: Mapping[str, Any]) -> Rule:
        tree = self.mapping(name, value)
        valid = ["where", *KEY_OF_AXIS]
        for key in tree:
            if key not in valid:
                self.refuse(f"{name}: unknown key {key!r}{nearest(key, valid)}")
        where: dict[str, tuple[Any, ...]] = {}
        for axis, wanted in self.mapping(f"{name}.where", tree.get("where", {})).items():
            if axis not in AXES:
                self.refuse(f"{name}.where: unknown axis {axis!r}{nearest(axis, AXES)}")
            if axis in KEY_OF_AXIS:
                where[axis] = self.numbers(f"{name}.where.{axis}", wanted, axis)
                continue
            known = arms if axis == "arm" else sizes
            where[axis] = tuple(wanted) if isinstance(wanted, list) else (wanted,)
            for item in where[axis]:
                if not isinstance(item, str) or item not in known:
                    self.refuse(f"{name}.where.{axis} names {item!r}{nearest(str(item), known)}")
        values = {axis: self.numbers(f"{name}.{axis}", item, axis) for axis, item in tree.items() if axis != "where"}
        if not values:
            self.refuse(f"{name} sets no axis; valid: {', '.join(KEY_OF_AXIS)}")
        for axis in values:
            late = [other for other in where if AXES.index(other) >= AXES.index(axis)]
            if late:
                self.refuse(
                    f"{name} sets {axis} where {late[0]} is ..., but axes are chosen in the order {', '.join(AXES)}"
                )
        return Rule(where, values)

    def share(self, name: str) -> float | None:
        value = self.tree.get(name)
        if value is None:
            return None
        number = self.number(name, value, name)
        if not 0 <= number < 1:
            self.refuse(f"{name} is {value!r}; it must be in [0, 1)")
        return number

    def count(self, name: str, value: Any) -> int | None:
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            self.refuse(f"{name} is {value!r}; it must be a whole number of at least 1")
        return value

    def ranks(self, sizes: Mapping[str, Any]) -> dict[str, int]:
        value = self.tree.get("ranks", 1)
        given = value if isinstance(value, dict) else dict.fromkeys(sizes, value)
        for size in given:
            if size not in sizes:
                self.refuse(f"ranks names {size!r}{nearest(str(size), sizes)}")
        return {size: self.count(f"ranks.{size}", given.get(size, 1)) or 1 for size in sizes}

    def hardware(self, value: Any) -> Hardware:
        """Either an achieved rate, or a device of known peak and the share of it that training reaches."""
        tree = self.mapping("hardware", value)
        valid = ("flops_per_second", "device", "mfu", "startup_seconds")
        for key in tree:
            if key not in valid:
                self.refuse(f"hardware: unknown key {key!r}{nearest(key, valid)}")
        mfu = self.number("hardware.mfu", tree.get("mfu", 1.0), "")
        if not 0 < mfu <= 1:
            self.refuse(f"hardware.mfu is {mfu:g}; it must be in (0, 1]")
        startup = self.number("hardware.startup_seconds", tree.get("startup_seconds", 30.0), "")
        if "flops_per_second" in tree and "mfu" in tree:
            self.refuse("hardware gives flops_per_second and mfu; one of them says how fast a device is")
        if "flops_per_second" in tree:
            rate = self.number("hardware.flops_per_second", tree["flops_per_second"], "")
        elif "device" in tree and "mfu" in tree:
            # Only here: the table of peaks stands beside code that reads model shapes.
            from card_scale.cost.devices import devices_with_peaks, peak_flops

            peak = peak_flops(str(tree["device"]))
            if peak is None:
                known = ", ".join(devices_with_peaks())
                self.refuse(f"hardware.device {tree['device']!r} is none of {known}; give flops_per_second")
            rate = (peak or 0.0) * mfu
        else:
            self.refuse("hardware is missing: flops_per_second, or device and mfu, which the hours are estimated from")
        if rate <= 0 or startup < 0:
            self.refuse(f"hardware gives {rate:.3g} FLOP/s and {startup} s to start; they must be positive")
        return Hardware(rate, startup, str(tree["device"]) if "device" in tree else None)

    def corpus(self, value: Any) -> StatedCorpus | None:
        if value is None:
            return None
        tree, valid = self.mapping("corpus", value), tuple(StatedCorpus.__dataclass_fields__)
        for key in tree:
            if key not in valid:
                self.refuse(f"corpus: unknown key {key!r}{nearest(key, valid)}")
        for key in valid:
            if key not in tree:
                self.refuse(f"corpus.{key} is missing")
        sizes = {key: int(self.number(f"corpus.{key}", tree[key], "seed")) for key in valid}
        return StatedCorpus(**{key: self.count(f"corpus.{key}", size) or 1 for key, size in sizes.items()})

    def slurm(self, value: Any) -> Slurm:
        tree = dict(self.mapping("slurm", value))
        devices = self.count("slurm.devices_per_node", tree.pop("devices_per_node", 8))
        gpus = tree.pop("gpus", True)
        if not isinstance(gpus, bool):
            self.refuse(f"slurm.gpus is {gpus!r}; it must be true or false")
        return Slurm(devices or 8, gpus, tree)
