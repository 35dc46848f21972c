"""Evaluation: the exact likelihood of clean text, and for CARD the losses that parallel decoding lives on."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from card_scale.config import Config
from card_scale.data.loader import ValidationBatches
from card_scale.objectives import CardObjective, Objective, ObjectiveBatch
from card_scale.parallel import cpu_backend, schedule
from card_scale.parallel.engine import ShardingEngine
from card_scale.training.update import global_sums, split

NOISE_LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Noise levels at which CARD's loss is evaluated."""

DECODING_BLOCK = 8
"""CARD's denoising loss is reported for the k-th token of a block decoded at once, k = 1 ... this."""


class Evaluation:
    """Evaluates the model on a fixed set of validation samples. Collective over all ranks."""

    def __init__(self, engine: ShardingEngine, objective: Objective, config: Config, batches: ValidationBatches):
        self.engine, self.objective, self.config, self.batches = engine, objective, config, batches
        self.device = cpu_backend.device()

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Return ``validation_nll`` (nats per token, exact, left to right) and ``validation_perplexity``.

        For CARD also ``card/validation_nll_noise_T``, the unweighted loss at noise level T, and
        ``card/validation_nll_masked_K``, the loss of a token predicted after K - 1 masks and clean text before them.
        """
        length = self.config.model.length
        everywhere = torch.ones(length, dtype=torch.bool, device=self.device)
        self.engine.train(False)
        nll = self._mean(lambda tokens, _: self.objective.clean(tokens), everywhere).mean().item()
        results = {"validation_nll": nll, "validation_perplexity": math.exp(min(nll, 700.0))}
        if isinstance(self.objective, CardObjective):
            results |= self._card(self.objective, everywhere)
        self.engine.train()
        return results

    def _card(self, objective: CardObjective, everywhere: Tensor) -> dict[str, float]:
        results = {}
        for level in NOISE_LEVELS:

            def corrupt(tokens: Tensor, ids: Tensor, level: float = level) -> ObjectiveBatch:
                levels = torch.full((len(ids),), level, device=self.device)
                return objective.at_noise_level(tokens, ids, levels, self.config.run.seed)

            results[f"card/validation_nll_noise_{level}"] = self._mean(corrupt, everywhere).mean().item()
        block = min(DECODING_BLOCK, len(everywhere))
        tail = torch.zeros_like(everywhere)
        tail[-block:] = True
        by_token = self._mean(lambda tokens, _: objective.masked_tail(tokens, block - 1).batch, tail)
        for number, value in enumerate(by_token.tolist(), start=1):
            results[f"card/validation_nll_masked_{number}"] = value
        return results

    def _mean(self, corrupt: Callable[[Tensor, Tensor], ObjectiveBatch], positions: Tensor) -> Tensor:
        """Return the mean cross-entropy at each selected position over the valid samples, float64 on every rank.

        Args:
            corrupt: (tokens, sample ids) -> evaluation batch.
            positions: bool [L].
        """
        sums = torch.zeros(int(positions.sum()) + 1, dtype=torch.float64, device=self.device)

        def report(token_losses: Tensor, micro_batch: schedule.MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            # The weights of an evaluation batch are 1, or 0 on rows that only fill up the last batch.
            counted = token_losses.double() * micro_batch.extra.weights
            per_position = counted[:, positions].sum(0)
            rows = micro_batch.extra.weights[:, 0].double().sum()[None]
            return token_losses.sum(), {"sums": torch.cat((per_position, rows))}

        for batch in self.batches:
            sample_ids, _, tokens, valid = (field.to(self.device, non_blocking=True) for field in batch)
            evaluated = corrupt(tokens, sample_ids)
            evaluated = evaluated._replace(weights=evaluated.weights * valid[:, None])
            micro_batches = split(evaluated, None, self.config.train.micro_batch)
            for reported in schedule.run(self.engine, micro_batches, report, forward_only=True):
                sums += reported["sums"]
        sums = global_sums(sums)
        return sums[:-1] / sums[-1]
