"""A run's records: metrics.jsonl, TensorBoard, W&B, the console's lines and, on a terminal, a progress bar."""

import contextlib
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from card_scale.config import Config
from card_scale.cost.devices import peak_flops, throughput_fields
from card_scale.cost.flops import flops_per_token
from card_scale.cost.parameters import parameter_counts
from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.selection import compiles_layers
from card_scale.training.charts import charts
from card_scale.training.console import evaluation_line, training_line
from card_scale.training.records import MetricsFile, read_metrics
from card_scale.training.run_checkpoints import Start
from card_scale.training.run_data import RunData
from card_scale.training.run_directory import RunDirectory
from card_scale.training.steps import times_due
from card_scale.training.stragglers import Delays
from card_scale.training.tensorboard import TensorBoardRecorder
from card_scale.training.train_step import StepReport
from card_scale.training.wandb_run import WandbRecorder


class Recorder(ABC):
    """What a run reports of itself, on every rank."""

    @abstractmethod
    def training(
        self, report: StepReport, learning_rate: float, waited_seconds: float, left_out: int, delays: Delays
    ) -> None:
        """Record an update; ``waited_seconds`` were spent waiting for data since the last one recorded, and so many
        samples have been left out by now; ``delays`` are those of ranks among each other."""

    @abstractmethod
    def refusals(self, report: StepReport) -> None:
        """Say what was not applied up to an update."""

    @abstractmethod
    def evaluation(self, step: int, results: Mapping[str, Any], seconds: float) -> None:
        """Record an evaluation of the model after ``step`` updates, which took so many seconds."""

    @abstractmethod
    def advance(self) -> None:
        """Move the progress bar by one update. A start's first one is no measure of those to come."""

    @abstractmethod
    def restart_clock(self, step: int) -> None:
        """Begin a new interval after ``step`` updates: what lay before (evaluation, saving) is no training time."""

    @abstractmethod
    def close(self) -> None:
        """Close files and bar."""


class SilentRecorder(Recorder):
    """That of a rank which records nothing."""

    def training(
        self, report: StepReport, learning_rate: float, waited_seconds: float, left_out: int, delays: Delays
    ) -> None:
        pass

    def refusals(self, report: StepReport) -> None:
        pass

    def evaluation(self, step: int, results: Mapping[str, Any], seconds: float) -> None:
        pass

    def advance(self) -> None:
        pass

    def restart_clock(self, step: int) -> None:
        pass

    def close(self) -> None:
        pass


class WritingRecorder(Recorder):
    """That of the one rank which turns updates and evaluations into records and writes them where they belong."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        *,
        vocabulary_rows: int,
        samples_per_epoch: int,
        total_steps: int,
        world_size: int,
        resume_step: int | None,
        passed_over: int,
    ):
        """Open the records of a run that resumes after update ``resume_step``, or begins (None), having passed over so
        many batches."""
        self.config, self.total_steps, self.world_size = config, total_steps, world_size
        self.samples_per_epoch, self.passed_over = samples_per_epoch, passed_over
        start = resume_step or 0
        self.directory, self._draws = directory, True
        self.is_bound = not config.objective.likelihood_is_exact
        self.metrics = MetricsFile(directory.metrics, resume_step)
        self.flops = flops_per_token(config.model, config.objective.attention, vocabulary_rows)
        self.is_gpu = current_device().type == "cuda"
        self.peak = peak_flops(torch.cuda.get_device_name(current_device())) if self.is_gpu else None
        shown = {"model.parameters": parameter_counts(config.model, vocabulary_rows).total, **config.flat()}
        self.tensorboard = TensorBoardRecorder(
            directory.tensorboard,
            hyperparameters=shown,
            config_text=config.to_yaml(),
            charts=charts(
                config,
                repeats_data=total_steps * config.train.global_batch > samples_per_epoch,
                peak_is_known=self.peak is not None,
            ),
            is_bound=self.is_bound,
            resume_step=resume_step,
            earlier=read_metrics(directory.metrics),  # the lines that were kept
        )
        self.bar = tqdm(
            total=total_steps,
            initial=start,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self.wandb = None
        if config.run.wandb is not None:
            is_new = resume_step is None
            self.wandb = WandbRecorder(
                config.run.wandb, directory, config=shown, is_bound=self.is_bound, is_new=is_new, say=self._say
            )
        self.compiles = compiles_layers(config, current_device().type)
        self._start, self._is_first = start, True
        self._interval_start, self._interval_step, self._logged_step = time.monotonic(), start, start
        self._evaluation_seconds = 0.0
        """Of the last one."""
        self._is_done = False

    def training(
        self, report: StepReport, learning_rate: float, waited_seconds: float, left_out: int, delays: Delays
    ) -> None:
        train, length, step = self.config.train, self.config.model.length, report.step
        seconds = (time.monotonic() - self._interval_start) / max(1, step - self._interval_step)
        samples = step * train.global_batch
        tokens_per_second = train.global_batch * length / seconds
        record = {
            "step": step,
            "tokens": samples * length,
            "samples": samples,
            "epoch": (samples + self.passed_over * train.global_batch) / self.samples_per_epoch,
            "lr": learning_rate,
            "step_seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "global_batch": train.global_batch,
            "world_size": self.world_size,
            "data/wait_ms": waited_seconds / (step - self._logged_step) * 1000,
        }
        if self.is_gpu:
            record |= throughput_fields(
                self.flops, tokens_per_second=tokens_per_second, devices=self.world_size, peak=self.peak
            )
        if report.applied:
            record |= {"loss": report.loss, "grad_norm": report.gradient_norm} | report.metrics
        if report.interval_loss is not None:
            record["loss_interval"] = report.interval_loss
        if self.config.guard.policy != "raise":
            record["guard/refused_updates"] = report.refusals.total
            record["guard/passed_over_batches"] = self.passed_over
        record |= delays.fields
        for warning in delays.warnings:
            self._say(f"warning: step {step}: {warning}")
        if self.config.data.skip_damaged:
            record["data/left_out_samples"] = left_out
        self._logged_step = step
        self._write(record, self.tensorboard.training)
        line = training_line(
            record,
            total_steps=self.total_steps,
            is_bound=self.is_bound,
            seconds_left=self._seconds_left(step, seconds),
            refused=len(report.refusals.steps),
            not_finite=report.refusals.not_finite,
        )
        self._say(line)

    def _seconds_left(self, step: int, step_seconds: float) -> float:
        """Return how long updates and evaluations will take that come after the log line of an update."""
        evaluations = times_due(step - 1, self.config.train.eval_every, self.total_steps)
        return (self.total_steps - step) * step_seconds + evaluations * self._evaluation_seconds

    def refusals(self, report: StepReport) -> None:
        if steps := report.refusals.steps:
            others = f", nor {len(steps) - 1} others since the last report" if len(steps) > 1 else ""
            self._say(f"warning: {report.refusals.reason}; the update was not applied{others}")

    def evaluation(self, step: int, results: Mapping[str, Any], seconds: float) -> None:
        record = {"step": step, "samples": step * self.config.train.global_batch, **results}
        self._evaluation_seconds = seconds
        self._is_done = step == self.total_steps
        self._write(record, self.tensorboard.evaluation)
        self._say(evaluation_line(record, total_steps=self.total_steps, seconds=seconds))

    def advance(self) -> None:
        self.bar.update()
        is_first, self._is_first = self._is_first, False
        if is_first and self._interval_step == self._start:  # its time is in no log line yet
            if self.compiles:
                seconds = time.monotonic() - self._interval_start
                self._say(f"first update: {seconds:.1f} s, with the compilation of the layers")
            self.restart_clock(self._start + 1)

    def restart_clock(self, step: int) -> None:
        self._interval_start, self._interval_step = time.monotonic(), step

    def _write(self, record: dict[str, Any], draw: Callable[[Mapping[str, object]], None]) -> None:
        """Write a record where it belongs. What the disk refuses does not end a run."""
        if (refused := self.metrics.write(record)) is not None:
            self._say(f"warning: {self.directory.metrics}: {refused}; tried again with the next record")
        if self.wandb is not None:
            self.wandb.write(record)
        if not self._draws:
            return
        try:
            draw(record)
        except OSError as refused:
            # Its writer is lost: it runs in a thread that has ended.
            self._draws = False
            self._say(f"warning: {self.directory.tensorboard}: {refused}; no more curves until the next start")

    def _say(self, line: str) -> None:
        """Print a line without tearing the progress bar."""
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()
        self.metrics.close()
        if self._draws:
            with contextlib.suppress(OSError):  # a full disk: the curves end earlier, the run is what it is
                self.tensorboard.close()
        if self.wandb is not None:
            self.wandb.close(is_done=self._is_done)  # last: it may wait, and be killed while it does


def open_recorder(
    config: Config, directory: RunDirectory, data: RunData, dims: ParallelDims, *, total_steps: int, start: Start
) -> Recorder:
    """Return this rank's recorder: one rank writes."""
    if not process_groups.is_main_rank():
        return SilentRecorder()
    return WritingRecorder(
        config,
        directory,
        vocabulary_rows=data.vocabulary.padded,
        samples_per_epoch=data.train.sample_count,
        total_steps=total_steps,
        world_size=dims.world_size,
        resume_step=None if start.is_new else start.step,
        passed_over=start.passed_over,
    )
