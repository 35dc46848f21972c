"""The result table of a study: one row a run, failed ones included, with everything needed to make it again.

Names that the fits read stand in :mod:`card_scale.laws.columns`; ``objective`` is the arm of the grid, which tells
more than the configuration key ``objective.name``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from card_scale.cost.flops import flops_per_token
from card_scale.cost.parameters import parameter_counts
from card_scale.files import read_json
from card_scale.laws import columns
from card_scale.model.vocabulary import padded_vocabulary
from card_scale.studies.endings import ending
from card_scale.studies.passes import losses_of_passes
from card_scale.studies.spec import RunSpec
from card_scale.studies.state import StudyDirectory
from card_scale.studies.tasks import Task
from card_scale.training.records import evaluations_of, read_metrics
from card_scale.training.run_directory import RunDirectory

_VERSIONS = ("card_scale", "torch", "deepspeed", "megatron-core", "numpy")


def rows(study: StudyDirectory, specs: Sequence[RunSpec], tasks: Sequence[Task]) -> list[dict[str, Any]]:
    """Return the result table's rows in the order of the grid; a value that is not known is None."""
    by_id = {task.id: task for task in tasks}
    # Objectives have keys of their own: a row has None under those of others.
    keys = list(dict.fromkeys(key for spec in specs for key in spec.config.flat()))
    return [_row(study, spec, by_id) | _configuration(spec, keys) for spec in specs]


def curves(specs: Sequence[RunSpec]) -> list[dict[str, Any]]:
    """Return the evaluations of all runs, one row each: run, step, tokens, epoch, flops and the losses."""
    found = []
    for spec in specs:
        per_token = _flops_per_token(spec)
        for record in evaluations_of(read_metrics(RunDirectory(spec.config.run.dir).metrics)):
            samples = record["step"] * spec.config.train.global_batch
            tokens = samples * spec.config.model.length
            found.append(
                {
                    columns.RUN: spec.id,
                    columns.OBJECTIVE: spec.cell.arm,
                    "size": spec.cell.size,
                    "step": record["step"],
                    "tokens": tokens,
                    "epoch": samples / spec.samples_per_epoch,
                    "flops": tokens * per_token,
                    "val_loss": record["validation_nll"],
                    "val_loss_standard_error": record.get("validation_nll_standard_error"),
                    "train_nll": record.get("train_nll"),
                    "gap": record.get("repetition/gap"),
                }
            )
    return found


def losses_by_pass(specs: Sequence[RunSpec]) -> list[dict[str, Any]]:
    """Return the training loss of each pass over the data that log lines fell into.

    Run, pass (from 1), loss, log lines that it is the mean of, and the share of the pass's samples that they cover; see
    :func:`card_scale.studies.passes.losses_of_passes`.
    """
    found = []
    for spec in specs:
        records = read_metrics(RunDirectory(spec.config.run.dir).metrics)
        for number, one in losses_of_passes(spec, records).items():
            found.append(
                {
                    columns.RUN: spec.id,
                    columns.OBJECTIVE: spec.cell.arm,
                    "size": spec.cell.size,
                    "pass": number,
                    "loss": one.loss,
                    "lines": one.lines,
                    "covered": round(one.covered, 4),
                }
            )
    return found


def _row(study: StudyDirectory, spec: RunSpec, tasks: dict[str, Task]) -> dict[str, Any]:
    config, directory = spec.config, RunDirectory(spec.config.run.dir)
    rows_held = padded_vocabulary(spec.corpus.vocabulary_size)
    counts, per_token = parameter_counts(config.model, rows_held), _flops_per_token(spec)
    records = read_metrics(directory.metrics)
    status, code, reason = ending(study, tasks[spec.id], tasks, records)
    outcome = study.outcome(tasks[spec.id])
    seen = spec.unique_tokens_seen
    row: dict[str, Any] = {
        columns.RUN: spec.id,
        columns.STATUS: status,
        "exit_code": code,
        "reason": reason,
        columns.OBJECTIVE: spec.cell.arm,
        "size": spec.cell.size,
        columns.PARAMETERS: counts.total,
        "params_non_embedding": counts.layers + counts.norms,
        columns.TOKENS: spec.tokens,
        columns.UNIQUE: seen,
        columns.EPOCHS: spec.tokens / seen,
        "steps": spec.steps,
        "flops": spec.tokens * per_token,
        columns.BOUND: not config.objective.likelihood_is_exact,
    }
    row |= _losses(spec, records, complete=status == "done")
    row |= {
        "seed": config.run.seed,
        "lr": config.optimizer.lr,
        "weight_decay": config.optimizer.weight_decay,
        "dropout": config.model.dropout,
        "schedule": config.optimizer.schedule,
        "branched_at": _branched_at(tasks[spec.id]),
        "ranks": spec.ranks,
        "seconds": round(outcome.seconds, 1),
        "attempts": outcome.attempts,
        "vocabulary_size": spec.corpus.vocabulary_size,
        "data_digest": spec.corpus.digest,
        columns.TOKENIZER: spec.corpus.tokenizer_sha256,
        columns.VALIDATION: spec.held_out.validation_digest(config.model.length, config.data.validation_samples),
        "validation_tokens": config.model.length
        * spec.held_out.scored_samples(config.model.length, config.data.validation_samples),
        columns.DECONTAMINATED: spec.held_out.held_out_from(spec.corpus),
    }
    row |= _environment(directory.path / "environment.json")
    start = "python" if spec.ranks == 1 else f"torchrun --nproc-per-node {spec.ranks}"
    row["command"] = " ".join([f"{start} -m card_scale.train", spec.base, *(f"'{o}'" for o in spec.overrides)])
    return row


def _configuration(spec: RunSpec, keys: Sequence[str]) -> dict[str, Any]:
    values = spec.config.flat()
    return {key: list(values[key]) if isinstance(values.get(key), tuple) else values.get(key) for key in keys}


def _losses(spec: RunSpec, records: Sequence[dict[str, Any]], *, complete: bool) -> dict[str, Any]:
    """Return the losses of a row; the final ones only of a complete run."""
    evaluations = [r for r in evaluations_of(records) if r["step"] > 0 and r["validation_nll"] is not None]
    training = [record for record in records if "loss" in record]
    last: dict[str, Any] = evaluations[-1] if complete else {}
    best = min(evaluations, key=lambda record: record["validation_nll"]) if evaluations else {}
    by_pass = losses_of_passes(spec, records)
    per_epoch = spec.samples_per_epoch / spec.config.train.global_batch
    return {
        columns.LOSS: last.get("validation_nll"),
        "val_loss_standard_error": last.get("validation_nll_standard_error"),
        "best_val_loss": best.get("validation_nll"),
        "best_epoch": best["step"] / per_epoch if best else None,
        "train_nll": last.get("train_nll"),
        "gap": last.get("repetition/gap"),
        "train_loss": training[-1]["loss"] if complete and training else None,
        # The n-th entry is the n-th pass, also where no line fell into an earlier one.
        "loss_by_pass": [
            by_pass[number].loss if number in by_pass else None for number in range(1, max(by_pass, default=0) + 1)
        ],
    }


def _branched_at(task: Task) -> int | None:
    return task.branch.step if task.branch else None


def _environment(path: Path) -> dict[str, Any]:
    """Return commit, device and versions that a run recorded; None for a run that never began."""
    found = read_json(path) if path.is_file() else {}
    versions = found.get("versions", {})
    return {
        "commit": found.get("commit"),
        "device": found.get("device"),
        "python": found.get("python"),
        **{f"version_{name.replace('-', '_')}": versions.get(name) for name in _VERSIONS},
    }


def _flops_per_token(spec: RunSpec) -> float:
    rows = padded_vocabulary(spec.corpus.vocabulary_size)
    return flops_per_token(spec.config.model, spec.config.objective.attention, rows).causal
