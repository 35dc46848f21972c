"""What a study will cost, before anything starts: work, memory, time and disk of every task."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from card_scale.checkpoint.retention import to_prune
from card_scale.cost.flops import FORWARD_SHARE, flops_per_token
from card_scale.cost.memory import checkpoint_bytes, step_memory
from card_scale.cost.parameters import parameter_counts
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed import parallel_dims
from card_scale.engine.selection import engine_kind
from card_scale.errors import ConfigurationError
from card_scale.files import write_atomically, write_json
from card_scale.model.vocabulary import Vocabulary, padded_vocabulary
from card_scale.objectives.evaluation import DRAWS, likelihood_passes
from card_scale.studies.grid import Grid, Hardware
from card_scale.studies.spec import RunSpec
from card_scale.studies.tasks import Task
from card_scale.units import duration, short

_RECORD_BYTES = 2000
"""Per log line or evaluation: a line of metrics.jsonl and the TensorBoard events beside it."""


@dataclass(frozen=True)
class Cost:
    """One task of a study and what it takes. FLOPs are model FLOPs, visible pairs of the attention only."""

    id: str
    arm: str
    size: str
    kind: str
    """run, branch (a run's decay) or trunk (a leg of one)."""
    unique_tokens: int
    epochs: float
    parameters: int
    parameters_without_embeddings: int
    steps: int
    """Updates that the task makes itself."""
    tokens: int
    """Clean tokens that it trains on itself."""
    flops: float
    """Of these updates."""
    evaluation_flops: float
    ranks: int
    bytes_per_rank: float
    """Model states and activations; not the logits, the libraries and the CUDA context."""
    seconds: float
    """From the start of its process to its end."""
    device_hours: float
    disk_bytes: float


@dataclass(frozen=True)
class Plan:
    """All costs of a study."""

    costs: tuple[Cost, ...]
    basis: str
    """What the hours rest on."""

    @property
    def device_hours(self) -> float:
        return sum(cost.device_hours for cost in self.costs)

    @property
    def flops(self) -> float:
        """Training FLOPs of all tasks."""
        return sum(cost.flops for cost in self.costs)


def plan(
    grid: Grid, specs: Sequence[RunSpec], tasks: Sequence[Task], measured: Mapping[tuple[str, str], float]
) -> Plan:
    """Return the costs of a study's tasks, in their order.

    ``measured`` maps (arm, size) to model FLOPs a second and device, where they were timed; elsewhere the grid's
    hardware decides. Raises ConfigurationError for a run that its layout, its objective or its engine cannot make.
    """
    by_id = {spec.id: spec for spec in specs}
    leg_owner = {task.after: by_id[task.id] for task in tasks if task.branch}
    for spec in specs:
        _check(spec, grid)
    costs = []
    for task in tasks:
        spec = leg_owner[task.id] if task.is_leg else by_id[task.id]
        rate = measured.get((spec.cell.arm, spec.cell.size), grid.hardware.flops_per_second)
        costs.append(_cost(task, spec, rate, grid.hardware))
    stated = (
        f"{grid.hardware.flops_per_second:.3g} model FLOP/s a device, {grid.hardware.startup_seconds:.0f} s to start"
    )
    timed = f"; {len(measured)} of the arms and sizes timed on this machine" if measured else ""
    return Plan(tuple(costs), stated + timed)


def _check(spec: RunSpec, grid: Grid) -> None:
    """Raise, naming the run, what the run itself would raise before it starts."""
    config = spec.config
    try:
        dims = parallel_dims.plan(config, spec.ranks)
        engine_kind(config).check(config, dims)
        Vocabulary(spec.corpus.vocabulary_size, MASK_ID).check_divisible(dims.tensor)
        if config.model.attention_backend != "auto":
            # Only here: it loads torch, and what chooses for itself is never refused.
            from card_scale.distributed.device import current_device
            from card_scale.model.attention.selection import resolve_backend

            device = "cuda" if grid.hardware.device else current_device().type
            resolve_backend(config.objective.attention, config.model.attention_backend, device)
    except ConfigurationError as error:
        raise ConfigurationError(f"{spec.id} on {spec.ranks} ranks: {error}") from None


def _cost(task: Task, spec: RunSpec, flops_per_second: float, hardware: Hardware) -> Cost:
    config = spec.config
    rows = padded_vocabulary(spec.corpus.vocabulary_size)
    counts, dims = parameter_counts(config.model, rows), parallel_dims.plan(config, task.ranks)
    per_token = flops_per_token(config.model, config.objective.attention, rows).causal
    tokens = task.new_steps * config.train.global_batch * config.model.length
    evaluation = task.new_evaluations * _evaluated_tokens(spec) * per_token * FORWARD_SHARE
    seconds = hardware.startup_seconds + (tokens * per_token + evaluation) / (flops_per_second * task.ranks)
    memory = step_memory(config, dims, engine_kind(config).zero_stage(config), rows)
    records = task.new_evaluations + task.new_steps // config.train.log_every + 1
    return Cost(
        id=task.id,
        arm=spec.cell.arm,
        size=spec.cell.size,
        kind="trunk" if task.is_leg else "branch" if task.branch else "run",
        unique_tokens=spec.unique_tokens,
        epochs=task.steps * config.train.global_batch / spec.samples_per_epoch,
        parameters=counts.total,
        parameters_without_embeddings=counts.layers + counts.norms,
        steps=task.new_steps,
        tokens=tokens,
        flops=tokens * per_token,
        evaluation_flops=evaluation,
        ranks=task.ranks,
        bytes_per_rank=memory.states + memory.activations,
        seconds=seconds,
        device_hours=seconds * task.ranks / 3600,
        disk_bytes=_checkpoints_kept(task) * checkpoint_bytes(config, rows) + records * _RECORD_BYTES,
    )


def _checkpoints_kept(task: Task) -> int:
    """Return how many of the checkpoints that the task writes are left at its end."""
    train = task.config.train
    regular = range(train.save_every, task.new_steps, train.save_every) if train.save_every else ()
    written = [*regular, task.new_steps]
    return len(written) - len(to_prune(written, task.new_steps, train.keep_last, train.keep_every))


def _evaluated_tokens(spec: RunSpec) -> int:
    """Return the tokens that one evaluation runs through the model."""
    config = spec.config
    scored = spec.held_out.scored_samples(config.model.length, config.data.validation_samples)
    samples = scored + min(config.data.train_samples, spec.samples_per_epoch)
    passes = likelihood_passes(config.objective) * (2 if config.optimizer.ema else 1)
    passes += len(config.objective.probes(config.model.length))
    passes += DRAWS * len(config.objective.sampled_likelihoods(config.model.length))
    return samples * passes * config.model.length


def table(plan: Plan, at_once: int) -> str:
    """Return the plan as lines for a terminal, with what it comes to in all."""
    head = [
        "task",
        "kind",
        "N",
        "U",
        "epochs",
        "steps",
        "tokens",
        "FLOPs",
        "ranks",
        "GiB/rank",
        "device time",
        "MiB disk",
    ]
    rows = [head]
    for cost in plan.costs:
        rows.append(
            [
                cost.id,
                cost.kind,
                short(cost.parameters),
                short(cost.unique_tokens),
                f"{cost.epochs:.4g}",
                f"{cost.steps:,}",
                short(cost.tokens),
                f"{cost.flops:.2e}",
                str(cost.ranks),
                f"{cost.bytes_per_rank / 2**30:.2f}",
                duration(cost.seconds * cost.ranks),
                f"{cost.disk_bytes / 2**20:.0f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        cells[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        lines.append("  ".join(cells).rstrip())
    runs = sum(cost.kind != "trunk" for cost in plan.costs)
    tokens, disk = sum(cost.tokens for cost in plan.costs), sum(cost.disk_bytes for cost in plan.costs)
    seconds = sum(cost.seconds for cost in plan.costs)
    lines += [
        "",
        f"{runs} runs in {len(plan.costs)} tasks: {tokens:,} tokens, {plan.flops:.3g} model FLOPs (visible pairs), "
        f"{duration(3600 * plan.device_hours)} of a device, {disk / 2**30:.2g} GiB of disk",
        f"{at_once} at once: about {duration(max(seconds / at_once, max(c.seconds for c in plan.costs)))}",
        f"times rest on {plan.basis}",
    ]
    return "\n".join(lines)


def write(plan: Plan, directory: Path) -> None:
    """Write ``plan.json`` and ``plan.csv``."""
    rows = [asdict(cost) for cost in plan.costs]
    total = {"device_hours": plan.device_hours, "flops": plan.flops, "basis": plan.basis}
    write_json(directory / "plan.json", {"total": total, "tasks": rows})
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(directory / "plan.csv", text.getvalue().encode())


def prepare_directory(directory: Path) -> None:
    """Create the study's directory. Raises ConfigurationError where it cannot be written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"study directory {directory} cannot be made: {error.strerror}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigurationError(f"study directory {directory} cannot be written; choose another with --directory")
