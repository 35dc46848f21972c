"""Evaluation: likelihood of held-out text, exact or bounded, and for CARD the losses that parallel decoding needs."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from card_scale.config import Config
from card_scale.data.loader import ValidationBatches
from card_scale.distributed import cpu_backend
from card_scale.engine import schedule
from card_scale.engine.base import ShardingEngine
from card_scale.objectives import BlockDiffusionObjective, CardObjective, Objective, ObjectiveBatch, Samples
from card_scale.objectives.mask_interval import MASK_RATE_BINS, cell_sums, least_variance
from card_scale.training.update import global_sums, split

NOISE_LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Noise levels at which CARD's loss is evaluated."""

DECODING_BLOCK = 8
"""CARD's denoising loss is reported for the k-th token of a block decoded at once, k = 1 ... this."""

DRAWS = 4
"""Draws of the noise over the validation set that estimate a bound; two at least, for its standard error."""

Corruption = Callable[[Samples], ObjectiveBatch]
Summary = Callable[[Tensor, ObjectiveBatch, Tensor], dict[str, Tensor]]
"""(token losses [B, L], the batch they are of, float64 [B]: 1 for rows that count) -> what is kept of them."""


class Evaluation:
    """Evaluates the model on a fixed set of validation samples. Collective over all ranks."""

    def __init__(self, engine: ShardingEngine, objective: Objective, config: Config, batches: ValidationBatches):
        self.engine, self.objective, self.config, self.batches = engine, objective, config, batches
        self.device = cpu_backend.device()
        self.scored = objective.scored(config.model.length)

    def __call__(self) -> dict[str, Any]:
        """Return :meth:`likelihood`, and for CARD the losses under noise.

        These are ``card/validation_nll_noise_T``, the unweighted loss at noise level T, and
        ``card/validation_nll_masked_K``, the loss of a token predicted after K - 1 masks and clean text before them.
        """
        results = self.likelihood()
        if isinstance(self.objective, CardObjective):
            results |= self._card(self.objective)
        return results

    def likelihood(self) -> dict[str, Any]:
        """Return ``validation_nll`` (nats per predicted token) and ``validation_perplexity``.

        For AR, CARD and BD3-LM with blocks of one token this is the exact likelihood, left to right; else an estimate
        of an upper bound, marked ``"bound": True``, with ``validation_nll_standard_error``. With
        ``objective.search_interval`` also ``bd3lm/min_mask`` and ``bd3lm/max_mask``, the interval of mask rates with
        the least ``bd3lm/block_loss_variance``.
        """
        results = self._exact() if self.objective.likelihood_is_exact else self._bound()
        return results | {"validation_perplexity": math.exp(min(results["validation_nll"], 700.0))}

    def _exact(self) -> dict[str, Any]:
        def summarise(token_losses: Tensor, batch: ObjectiveBatch, valid: Tensor) -> dict[str, Tensor]:
            per_sample = (token_losses.double() * batch.weights).sum(1)
            return {"sums": torch.stack(((per_sample * valid).sum(), valid.sum()))}

        total, count = self._sum("sums", (2,), self._reports(self._likelihood, summarise)).tolist()
        return {"validation_nll": total / (count * self.scored)}

    def _bound(self) -> dict[str, Any]:
        """The mean over samples and draws, in nats per token.

        The standard error is that of the noise: how far other draws over the same samples would lie apart. It is taken
        from the scatter of each sample's draws, which is unbiased for the variance but for what stratifying the noise
        levels over the samples gains. Rare low mask rates have large weights, so with few samples most single values
        are too small and a few too large.
        """
        objective = self.objective
        searched = (
            objective.block if isinstance(objective, BlockDiffusionObjective) and objective.search_interval else 0
        )

        def summarise(token_losses: Tensor, batch: ObjectiveBatch, valid: Tensor) -> dict[str, Tensor]:
            per_sample = (token_losses.double() * batch.weights).sum(1) / self.scored
            summary = {"per_sample": per_sample * valid, "valid": valid}
            if searched:
                summary["cells"] = cell_sums(token_losses, batch, valid)
            return summary

        draws = [list(self._reports(self._likelihood, summarise, draw)) for draw in range(DRAWS)]
        # Pipeline stages before the last have no reports: nothing of theirs enters the sums.
        nothing = torch.zeros(0, dtype=torch.float64, device=self.device)
        per_sample = torch.stack([torch.cat([nothing, *(report["per_sample"] for report in draw)]) for draw in draws])
        count = torch.cat([nothing, *(report["valid"] for report in draws[0])]).sum()
        local = torch.stack((per_sample.mean(0).sum(), per_sample.var(0).sum() / DRAWS, count))
        total, variance, samples = global_sums(local).tolist()
        results: dict[str, Any] = {
            "validation_nll": total / samples,
            "validation_nll_standard_error": math.sqrt(variance) / samples,
            "bound": True,
        }
        if searched:
            reports = (report for draw in draws for report in draw)
            best = least_variance(self._sum("cells", (MASK_RATE_BINS, searched + 1, 3), reports))
            results |= {
                "bd3lm/min_mask": best.low,
                "bd3lm/max_mask": best.high,
                "bd3lm/block_loss_variance": best.variance,
            }
        return results

    def _card(self, objective: CardObjective) -> dict[str, float]:
        results = {}
        for level in NOISE_LEVELS:

            def at_level(samples: Samples, level: float = level) -> ObjectiveBatch:
                levels = torch.full((len(samples.tokens),), level, device=self.device)
                return objective.at_noise_level(samples.tokens, samples.sample_ids, levels, self.config.run.seed)

            results[f"card/validation_nll_noise_{level}"] = self._by_position(at_level).mean().item()
        block = min(DECODING_BLOCK, self.config.model.length)
        by_position = self._by_position(lambda samples: objective.masked_tail(samples.tokens, block - 1).batch)
        for number, value in enumerate(by_position[-block:].tolist(), start=1):
            results[f"card/validation_nll_masked_{number}"] = value
        return results

    def _likelihood(self, samples: Samples) -> ObjectiveBatch:
        return self.objective.likelihood(samples, self.config.run.seed)

    def _by_position(self, corrupt: Corruption) -> Tensor:
        """Return the mean cross-entropy at each position over the samples, float64 [L] on every rank."""

        def summarise(token_losses: Tensor, _: ObjectiveBatch, valid: Tensor) -> dict[str, Tensor]:
            return {"sums": torch.cat(((token_losses.double() * valid[:, None]).sum(0), valid.sum()[None]))}

        sums = self._sum("sums", (self.config.model.length + 1,), self._reports(corrupt, summarise))
        return sums[:-1] / sums[-1]

    def _sum(self, key: str, shape: tuple[int, ...], reports: Iterator[dict[str, Tensor]]) -> Tensor:
        """Return the reports' ``key``, float64 of ``shape``, summed over the validation set, on every rank."""
        local = torch.zeros(shape, dtype=torch.float64, device=self.device)
        for report in reports:
            local += report[key]
        return global_sums(local)

    def _reports(self, corrupt: Corruption, summarise: Summary, draw: int = 0) -> Iterator[dict[str, Tensor]]:
        """Run this rank's samples, with the noise of a draw; on the last stage yield their summaries."""

        def report(token_losses: Tensor, micro_batch: schedule.MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            batch, valid = micro_batch.extra
            return token_losses.sum(), summarise(token_losses, batch, valid.double())

        count = self.batches.sample_count
        self.engine.train(False)
        for fields in self.batches:
            sample_ids, _, tokens, valid = (field.to(self.device, non_blocking=True) for field in fields)
            positions = draw * count + sample_ids
            batch = corrupt(Samples(tokens, sample_ids, torch.full_like(sample_ids, draw), positions, count))
            micro_batches = split(batch, valid, None, self.config.train.micro_batch)
            with torch.no_grad():
                reports = schedule.run(self.engine, micro_batches, report, forward_only=True)
            yield from reports
        self.engine.train()
