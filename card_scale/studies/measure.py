"""Times a few steps of a study's models on this machine, so that its hours rest on a measurement."""

import hashlib
import shutil
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from card_scale.cost.flops import flops_per_token
from card_scale.errors import ConfigurationError
from card_scale.files import read_json, write_json
from card_scale.model.vocabulary import padded_vocabulary
from card_scale.studies.spec import RunSpec
from card_scale.studies.task_process import command_line
from card_scale.studies.tasks import Task
from card_scale.training.records import read_metrics
from card_scale.training.run_directory import RunDirectory

STEPS = 24
WARM_UP = 4
"""The first steps, which allocate and compile."""


def measure(specs: Sequence[RunSpec], directory: Path, environment: Mapping[str, str]) -> dict[tuple[str, str], float]:
    """Run a few steps of each arm and size; return model FLOPs a second and device by (arm, size).

    They are kept in ``directory/measured.json``, the runs in ``directory/measure``: the same run is not timed twice.
    Raises ConfigurationError, with the run's own words, if one fails.
    """
    found: dict[tuple[str, str], float] = {}
    for spec in specs:
        key = (spec.cell.arm, spec.cell.size)
        if key not in found:
            found[key] = _flops_per_second(spec, directory / "measure" / _name(spec), environment)
    listed = [{"arm": arm, "size": size, "flops_per_second": rate} for (arm, size), rate in found.items()]
    write_json(directory / "measured.json", listed)
    return found


def _name(spec: RunSpec) -> str:
    """Name a timing by all that decides its speed, which the id of a run leaves out in part."""
    settings = repr((spec.base, spec.config, spec.ranks)).encode()
    return f"{spec.cell.arm}-{spec.cell.size}-{hashlib.blake2b(settings, digest_size=5).hexdigest()}"


def read(directory: Path) -> dict[tuple[str, str], float]:
    """Return what :func:`measure` has kept, nothing where it never ran."""
    path = directory / "measured.json"
    listed = read_json(path) if path.is_file() else []
    return {(item["arm"], item["size"]): item["flops_per_second"] for item in listed}


def _flops_per_second(spec: RunSpec, directory: Path, environment: Mapping[str, str]) -> float:
    keys = {
        "run.dir": directory,
        "data.epochs": "null",
        "data.validation_samples": spec.config.train.global_batch,
        "data.train_samples": 0,
        "train.steps": STEPS,
        "train.eval_every": 0,
        "train.log_every": 1,
        "optimizer.schedule": "constant",
    }
    overrides = [o for o in spec.overrides if o.partition("=")[0] not in keys]
    overrides += [f"{key}={value}" for key, value in keys.items()]
    run = RunDirectory(directory)
    ended = run.read_exit()
    if ended is None or ended[0]:
        if directory.exists():
            shutil.rmtree(directory)  # what was cut short is no measurement
        task = Task(
            id="measure",
            command=(spec.base, *overrides),
            directory=directory,
            config=spec.config,
            ranks=spec.ranks,
            steps=STEPS,
            new_steps=STEPS,
            new_evaluations=2,
        )
        done = subprocess.run(
            command_line(task),
            env=dict(environment),
            capture_output=True,
            text=True,
            start_new_session=True,
            check=False,
        )
        if done.returncode:
            ended = run.read_exit()
            raise ConfigurationError(f"timing {spec.id} failed: {ended[1] if ended else done.stderr[-300:]}")
    seconds = [r["step_seconds"] for r in read_metrics(run.metrics) if "loss" in r and r["step"] > WARM_UP]
    tokens = spec.config.train.global_batch * spec.config.model.length
    rows = padded_vocabulary(spec.corpus.vocabulary_size)
    per_token = flops_per_token(spec.config.model, spec.config.objective.attention, rows).causal
    return tokens * per_token / statistics.median(seconds) / spec.ranks
