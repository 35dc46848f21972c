"""Evaluation: likelihood of held-out text, exact or bounded, and whatever else the objective probes."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from card_scale.config import Config
from card_scale.data.loader import EvaluationBatches
from card_scale.data.samples import Samples
from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.engine import schedule
from card_scale.engine.base import ShardingEngine
from card_scale.errors import NumericError
from card_scale.objectives.base import Objective, Observer, Probe
from card_scale.objectives.batch import Batch
from card_scale.objectives.evaluation import DRAWS, likelihood_passes
from card_scale.training.agreement import any_is_asked_to_stop
from card_scale.training.bound_estimate import SUMS, estimate, sums_of_samples
from card_scale.training.evaluation_progress import EvaluationProgress
from card_scale.training.metric_sums import global_sums

Summary = Callable[[Tensor, Batch, Tensor], dict[str, Tensor]]
"""(token losses [B, L], the batch they are of, float64 [B]: 1 for rows that count) -> what is kept of them."""


class Evaluator:
    """Evaluates the model on fixed sets of samples. Collective over all ranks."""

    def __init__(self, engine: ShardingEngine, config: Config, batches: EvaluationBatches):
        self.engine, self.config, self.batches = engine, config, batches
        self.device = current_device()
        self.on_batch: Callable[[], None] = lambda: None
        """Called after each batch, on all ranks alike."""

    def likelihood_batches(self, objective: Objective) -> int:
        """Number of batches that :meth:`likelihood` takes."""
        return likelihood_passes(objective) * len(self.batches)

    def all_batches(self, objective: Objective) -> int:
        """Number of batches that a call takes."""
        length = self.config.model.length
        sampled, probes = len(objective.sampled_likelihoods(length)), len(objective.probes(length))
        return self.likelihood_batches(objective) + (DRAWS * sampled + probes) * len(self.batches)

    def __call__(self, objective: Objective) -> dict[str, Any]:
        """Return :meth:`likelihood`, the objective's sampled likelihoods, and the results of its probes."""
        results = self.likelihood(objective)
        for sampled in objective.sampled_likelihoods(self.config.model.length):
            mean, standard_error, _ = self._sampled(sampled.corrupt, objective)
            results |= {sampled.name: mean, f"{sampled.name}_standard_error": standard_error}
        for probe in objective.probes(self.config.model.length):
            results |= probe.results(self._by_position(probe))
        return results

    def likelihood(self, objective: Objective) -> dict[str, Any]:
        """Return ``validation_nll`` (nats per predicted token) and ``validation_perplexity``.

        Where the objective's likelihood is not exact it is an estimate of an upper bound, marked ``"bound": True``,
        with ``validation_nll_standard_error`` and what the objective learns from the draws.
        """
        results = self._exact(objective) if objective.likelihood_is_exact else self._bound(objective)
        return results | {"validation_perplexity": math.exp(min(results["validation_nll"], 700.0))}

    def _exact(self, objective: Objective) -> dict[str, Any]:
        def summarise(token_losses: Tensor, batch: Batch, valid: Tensor) -> dict[str, Tensor]:
            per_sample = (token_losses.double() * batch.weights).sum(1)
            return {"sums": torch.stack(((per_sample * valid).sum(), valid.sum()))}

        reports = self._reports(objective.likelihood, summarise)
        total, count = self._sum("sums", (2,), reports).tolist()
        return {"validation_nll": total / (count * objective.scored(self.config.model.length))}

    def _bound(self, objective: Objective) -> dict[str, Any]:
        mean, standard_error, observed = self._sampled(objective.likelihood, objective, objective.observer)
        return {"validation_nll": mean, "validation_nll_standard_error": standard_error, "bound": True} | observed

    def _sampled(
        self, corrupt: Callable[[Samples, int], Batch], objective: Objective, observer: Observer | None = None
    ) -> tuple[float, float, dict[str, float]]:
        """Return (mean over samples and draws in nats per token, its standard error, what the observer concludes)."""
        scored = objective.scored(self.config.model.length)

        def summarise(token_losses: Tensor, batch: Batch, valid: Tensor) -> dict[str, Tensor]:
            summary = {"sums": sums_of_samples(token_losses, batch, scored) * valid, "valid": valid}
            if observer is not None:
                summary["observed"] = observer.observe(token_losses, batch, valid)
            return summary

        draws = [list(self._reports(corrupt, summarise, draw)) for draw in range(DRAWS)]
        # Pipeline stages before the last have no reports: nothing of theirs enters the sums.
        nothing = torch.zeros((SUMS, 0), dtype=torch.float64, device=self.device)
        sums = torch.stack([torch.cat([nothing, *(report["sums"] for report in draw)], dim=1) for draw in draws])
        valid = torch.cat([nothing[0], *(report["valid"] for report in draws[0])])
        mean, standard_error = estimate(sums, valid, global_sums, objective.mean_noise_level)
        observed: dict[str, float] = {}
        if observer is not None:
            reports = (report for draw in draws for report in draw)
            observed = observer.conclude(self._sum("observed", observer.shape, reports))
        return mean, standard_error, observed

    def _by_position(self, probe: Probe) -> Tensor:
        """Return the mean cross-entropy of each prediction over the samples, float64 [L] on every rank."""

        def summarise(token_losses: Tensor, _: Batch, valid: Tensor) -> dict[str, Tensor]:
            return {"sums": torch.cat(((token_losses.double() * valid[:, None]).sum(0), valid.sum()[None]))}

        sums = self._sum("sums", (self.config.model.length + 1,), self._reports(probe.corrupt, summarise))
        return sums[:-1] / sums[-1]

    def _sum(self, key: str, shape: tuple[int, ...], reports: Iterator[dict[str, Tensor]]) -> Tensor:
        """Return the reports' ``key``, float64 of ``shape``, summed over the validation set, on every rank."""
        local = torch.zeros(shape, dtype=torch.float64, device=self.device)
        for report in reports:
            local += report[key]
        return global_sums(local)

    def _reports(
        self, corrupt: Callable[[Samples, int], Batch], summarise: Summary, draw: int = 0
    ) -> Iterator[dict[str, Tensor]]:
        """Run this rank's samples, with the noise of a draw; on the last stage yield their summaries."""

        def report(token_losses: Tensor, micro_batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return token_losses.sum(), summarise(token_losses, micro_batch, micro_batch.samples.valid.double())

        count = self.batches.sample_count
        self.engine.train(False)
        for read in self.batches:
            samples = read.to(self.device)
            samples = samples._replace(
                epochs=torch.full_like(samples.sample_ids, draw),
                global_positions=draw * count + samples.global_positions,
            )
            batch = corrupt(samples, self.config.run.seed)
            micro_batches = batch.micro_batches(self.config.train.micro_batch)
            yield from schedule.run(self.engine, micro_batches, report, forward_only=True)
            self.on_batch()
        self.engine.train()


class _GivenUpError(Exception):
    """A stop was asked for in the midst of an evaluation."""


class RunEvaluator:
    """All that a run evaluates: held-out samples, training samples where asked for, and the averaged weights."""

    def __init__(self, engine: ShardingEngine, config: Config, validation: EvaluationBatches, train: EvaluationBatches):
        self.engine, self.config = engine, config
        self.held_out = Evaluator(engine, config, validation)
        self.train_samples = Evaluator(engine, config, train)

    def __call__(
        self, objective: Objective, step: int, poll: Callable[[], str | None] | None = None
    ) -> Mapping[str, Any] | None:
        """Return the record of an evaluation after ``step`` updates; say how far it is where it takes long. Collective.

        ``poll``: returns why a stop is asked for on this rank, if one is. After a batch where a rank has been asked the
        evaluation is given up on all of them, and None returned. Without it none is.
        """
        averages = bool(self.config.optimizer.ema) and step > 0
        batches = self._batches(objective, averages)
        progress = EvaluationProgress(step, batches)

        def on_batch() -> None:
            progress.advance()
            if poll is not None and any_is_asked_to_stop(poll()):
                raise _GivenUpError

        self.held_out.on_batch = self.train_samples.on_batch = on_batch
        with progress.told() if process_groups.is_main_rank() else contextlib.nullcontext():
            try:
                return self._results(objective, averages)
            except _GivenUpError:
                return None

    def _batches(self, objective: Objective, averages: bool) -> int:
        """Number of batches of an evaluation."""
        count = self.held_out.all_batches(objective)
        if self.config.data.train_samples:
            count += self.train_samples.likelihood_batches(objective)
        return count + (self.held_out.likelihood_batches(objective) if averages else 0)

    def _results(self, objective: Objective, averages: bool) -> Mapping[str, Any]:
        results = self.held_out(objective)
        if self.config.data.train_samples:
            train_nll = self.train_samples.likelihood(objective)["validation_nll"]
            results |= {"train_nll": train_nll, "repetition/gap": results["validation_nll"] - train_nll}
        if averages:
            self.engine.swap_averaged()
            results["ema/validation_nll"] = self.held_out.likelihood(objective)["validation_nll"]
            self.engine.swap_averaged()
        return results


def check_finite(step: int, results: Mapping[str, Any]) -> None:
    """Raise NumericError, naming it, for a result of an evaluation after ``step`` updates that is not finite."""
    for name, value in results.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise NumericError(f"step {step}: the evaluation's {name} is {value}; lower optimizer.lr")
