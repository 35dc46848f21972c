"""Rank 0's records of a run: metrics.jsonl, TensorBoard, the log line and, on a terminal, a progress bar."""

import dataclasses
import sys
import time

import torch
from tqdm import tqdm

from card_scale.config import Config
from card_scale.distributed import cpu_backend
from card_scale.model.gpt import padded_vocabulary
from card_scale.training.records import MetricsFile, log_line
from card_scale.training.run_directory import RunDirectory
from card_scale.training.tensorboard import TensorBoardRecorder
from card_scale.training.throughput import flops_of, peak_flops, throughput_fields
from card_scale.training.update import LossSums


class Recorder:
    """Turns updates and evaluations into records and writes them everywhere they belong."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        *,
        vocabulary_size: int,
        samples_per_epoch: int,
        total_steps: int,
        world_size: int,
        resume_step: int | None,
    ):
        self.config, self.total_steps, self.world_size = config, total_steps, world_size
        self.samples_per_epoch = samples_per_epoch
        self.metrics = MetricsFile(directory.metrics, resume_step)
        flat = {
            f"{group.name}.{key}": value
            for group in dataclasses.fields(config)
            for key, value in dataclasses.asdict(getattr(config, group.name)).items()
        }
        self.tensorboard = TensorBoardRecorder(
            directory.tensorboard,
            config=flat,
            config_text=config.to_yaml(),
            resume_step=resume_step,
            resume_samples=(resume_step or 0) * config.train.global_batch,
        )
        self.flops = flops_of(config, padded_vocabulary(vocabulary_size))
        device = cpu_backend.device()
        self.is_gpu = device.type == "cuda"
        self.peak = peak_flops(torch.cuda.get_device_name(device)) if self.is_gpu else None
        self.bar = tqdm(
            total=total_steps,
            initial=resume_step or 0,
            unit="step",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._interval_start, self._interval_step = time.monotonic(), resume_step or 0

    def training(self, step: int, sums: LossSums, gradient_norm: float, learning_rate: float, wait: float) -> None:
        """Record update ``step`` (counted from 1); ``wait`` is the seconds per step spent waiting for data."""
        train, length = self.config.train, self.config.model.length
        seconds = (time.monotonic() - self._interval_start) / max(1, step - self._interval_step)
        samples = step * train.global_batch
        tokens_per_second = train.global_batch * length / seconds
        record = {
            "step": step,
            "tokens": samples * length,
            "samples": samples,
            "epoch": samples / self.samples_per_epoch,
            "loss": sums.loss,
            "lr": learning_rate,
            "grad_norm": gradient_norm,
            "step_seconds": seconds,
            "tokens_per_second": tokens_per_second,
            "global_batch": train.global_batch,
            "world_size": self.world_size,
            "data/wait_ms": wait * 1000,
        }
        if self.is_gpu:
            record |= throughput_fields(
                self.flops, tokens_per_second=tokens_per_second, devices=self.world_size, peak=self.peak
            )
        seen, all_scored = (sums.first_seen, sums.first_seen_positions), (sums.scored, sums.scored_positions)
        repeated = (all_scored[0] - seen[0], all_scored[1] - seen[1])
        for what, (loss, positions) in (("first_seen", seen), ("repeated", repeated)):
            if positions:
                record[f"repetition/loss_{what}"] = loss / positions
        name = self.config.objective.name
        if name != "ar":
            record[f"{name}/mask_ratio"] = sums.masked_positions / sums.positions
        if name == "card":
            record["card/loss_unweighted"] = sums.unweighted / sums.positions
            if sums.clean_positions:
                record["card/loss_clean_context"] = sums.clean_context / sums.clean_positions
        if name in ("mdlm", "bd3lm") and sums.masked_positions:
            record[f"{name}/loss_masked"] = sums.masked / sums.masked_positions
        self.metrics.write(record)
        self.tensorboard.training(record)
        self.say(log_line(record, total_steps=self.total_steps))
        self.bar.set_postfix_str(f"loss {sums.loss:.4f}", refresh=False)

    def evaluation(self, step: int, results: dict[str, float]) -> None:
        """Record an evaluation of the model after ``step`` updates."""
        record = {"step": step, "samples": step * self.config.train.global_batch, **results}
        self.metrics.write(record)
        self.tensorboard.evaluation(record)
        self.say(
            f" validation at iteration {step} | lm loss value: {results['validation_nll']:.6E} | "
            f"lm loss PPL: {results['validation_perplexity']:.6E} |"
        )

    def advance(self) -> None:
        """Move the progress bar by one update."""
        self.bar.update()

    def restart_clock(self, step: int) -> None:
        """Begin a new interval after ``step`` updates: what lay before (evaluation, saving) is no training time."""
        self._interval_start, self._interval_step = time.monotonic(), step

    def say(self, line: str) -> None:
        """Print a line without tearing the progress bar."""
        self.bar.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Close files and bar."""
        self.bar.close()
        self.metrics.close()
        self.tensorboard.close()
