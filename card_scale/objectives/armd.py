"""ARMD (arXiv 2601.16971): masked diffusion as any-order autoregression, all terms in one pass.

The tokens of a sample are predicted in an order, each from all those of earlier blocks; the order takes the place of
the noise: nothing is masked, and there is no time. A query stream, which knows where its token stands but not what it
is, goes beside the tokens through the first half of the layers and alone through the second. The paper's gamma(t) is 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import noise, token_order
from card_scale.objectives.attention import AttentionKind, StrictBlockCausal
from card_scale.objectives.base import (
    Metric,
    Objective,
    Probe,
    SampledLikelihood,
    check_choice,
    check_integer,
    everywhere,
)
from card_scale.objectives.batch import Batch, shared_positions


@dataclass(frozen=True)
class ArmdObjective(Objective):
    """ARMD. Raises ConfigurationError, naming the key, for values outside the stated ranges."""

    name: ClassVar[str] = "armd"
    likelihood_is_exact: ClassVar[bool] = True
    decoders: ClassVar[tuple[str, ...]] = ("armd_strided",)

    block: int = 1
    """Tokens that are predicted at once, none from another of them: consecutive ones of the order; a divisor of
    model.length."""
    permuted: int = 32
    """Tokens that leave their place in a sample's order at the end of training (rho); 0 keeps it left to right."""
    ar_steps: int = 9_000
    """Updates left to right, before tokens begin to move."""
    permute_steps: int = 48_000
    """Update from which ``permuted`` tokens move; between the two their number grows linearly."""
    strides: tuple[int, ...] = (1,)
    """Those to draw S from in each update, which predicts S tokens at once, from as many equal stretches of the sample;
    [1, 2, 4] fine-tunes for strided generation."""
    resample: bool = True
    """Draw a sample's order anew in each epoch; false repeats that of its first."""

    def __post_init__(self) -> None:
        check_integer("block", self.block, 1)
        check_integer("permuted", self.permuted, 0)
        check_integer("ar_steps", self.ar_steps, 0)
        check_integer("permute_steps", self.permute_steps, self.ar_steps)
        check_choice("resample", self.resample, (True, False))
        if not self.strides or len(set(self.strides)) != len(self.strides):
            raise ConfigurationError(f"objective.strides is {list(self.strides)}; valid is a list of different numbers")
        for stride in self.strides:
            check_integer("strides", stride, 1)
        if self._trains_strides:
            for key, value in (("permuted", 0), ("block", 1)):
                if getattr(self, key) != value:
                    raise ConfigurationError(
                        f"objective.{key} is {getattr(self, key)}, but with objective.strides {list(self.strides)} "
                        f"the orders are strided alone; set objective.{key}={value}"
                    )

    @property
    def attention(self) -> AttentionKind:
        """Two streams, of blocks of this size."""
        return StrictBlockCausal(self.block)

    def check(self, length: int) -> None:
        """Raise ConfigurationError for more tokens to move than there are, or blocks or strides that do not divide."""
        if self.permuted > length:
            raise ConfigurationError(
                f"objective.permuted is {self.permuted}; valid is at most model.length, {length} tokens"
            )
        for key, sizes in (("block", (self.block,)), ("strides", self.strides)):
            for size in sizes:
                if length % size:
                    raise ConfigurationError(f"objective.{key} {size} does not divide model.length {length}")

    def corrupt(self, samples: Samples, seed: int) -> Batch:
        """The training batch: a pure function of tokens, sample ids, epochs, the update's number and the seed."""
        length = samples.tokens.shape[1] - 1
        self.check(length)
        if self._trains_strides:
            return self._strided(samples, self.stride(samples.update, seed))
        count = token_order.moved_tokens(samples.update, self.permuted, self.ar_steps, self.permute_steps)
        if count == 0:
            return self._in_order(samples, None)
        drawn = samples.resampled(self.resample)
        return self._moved(samples, drawn, count, seed, noise.Stream.ORDER, noise.Stream.ORDER_RANKS)

    def likelihood(self, samples: Samples, seed: int) -> Batch:  # noqa: ARG002 - nothing is drawn
        """Left to right, by blocks; every weight 1."""
        return self._in_order(samples, None)

    def scored(self, length: int) -> int:
        """All but the one that is given."""
        return length

    def stride(self, update: int, seed: int) -> int:
        """S of an update, the same on every rank."""
        number = torch.tensor([update])
        draw = noise.uniforms(seed, number, torch.zeros_like(number), 1, noise.Stream.STRIDE)
        return self.strides[int(draw * len(self.strides))]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Share of the predictions out of place."""
        return (Metric("armd/out_of_place", out_of_place, everywhere),)

    def sampled_likelihoods(self, length: int) -> tuple[SampledLikelihood, ...]:
        """In any order whatever and, where tokens move in training, in orders like those at its end."""
        found = [SampledLikelihood("armd/any_order_nll", self._any_order(length))]
        if self.permuted:
            found.append(SampledLikelihood("armd/permuted_nll", self._any_order(self.permuted)))
        return tuple(found)

    def probes(self, length: int) -> tuple[Probe, ...]:  # noqa: ARG002 - the same at any length
        """Where strides are trained, the likelihood under each: what its approximation costs."""
        return tuple(self._stride_probe(stride) for stride in self.strides if stride > 1)

    @property
    def _trains_strides(self) -> bool:
        return self.strides != (1,)

    def _stride_probe(self, stride: int) -> Probe:
        return Probe(
            lambda samples, _seed: self._strided(samples, stride),
            lambda by_position: {f"armd/stride_{stride}_nll": by_position.mean().item()},
        )

    def _any_order(self, count: int) -> Callable[[Samples, int], Batch]:
        return lambda samples, seed: self._moved(
            samples, samples, count, seed, noise.Stream.EVALUATION_ORDER, noise.Stream.EVALUATION_ORDER_RANKS
        )

    def _moved(
        self, samples: Samples, drawn: Samples, count: int, seed: int, tokens: noise.Stream, ranks: noise.Stream
    ) -> Batch:
        """In an order with ``count`` tokens moved; ``drawn`` are the samples that it is a function of."""
        length = samples.tokens.shape[1] - 1
        of_tokens = noise.uniforms(seed, drawn.sample_ids, drawn.epochs, length, tokens)
        of_ranks = noise.uniforms(seed, drawn.sample_ids, drawn.epochs, length, ranks)
        return self._in_order(samples, token_order.with_moved_tokens(of_tokens, of_ranks, count))

    def _strided(self, samples: Samples, stride: int) -> Batch:
        """In the order of ``stride`` streams, whose heads are predicted one by one."""
        rows, length = samples.tokens.shape[0], samples.tokens.shape[1] - 1
        if stride == 1:
            return self._in_order(samples, None)
        order = token_order.strided(rows, length, stride, samples.tokens.device)
        batch = self._in_order(samples, order)
        positions = shared_positions(batch.positions[0].clone(), rows)
        return batch._replace(positions=positions, attention=StrictBlockCausal(stride, single_heads=True))

    def _in_order(self, samples: Samples, order: torch.Tensor | None) -> Batch:
        """The batch that predicts tokens 1 ... L in an order, by default left to right; token 0 is given."""
        tokens = samples.tokens
        rows, length = tokens.shape[0], tokens.shape[1] - 1
        places = torch.arange(1, length + 1, device=tokens.device)
        if order is None:
            positions = shared_positions(torch.cat((places, places - 1)), rows)
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
        else:
            queries = order + 1
            contents = torch.cat((torch.zeros_like(queries[:, :1]), queries[:, :-1]), dim=1)
            positions = torch.cat((queries, contents), dim=1)
            inputs, targets = tokens.gather(1, contents), tokens.gather(1, queries)
        return Batch(
            samples=samples,
            inputs=inputs,
            positions=positions,
            targets=targets,
            weights=torch.ones_like(targets, dtype=torch.float32),
            masked=torch.zeros_like(targets, dtype=torch.bool),
            noise_level=torch.zeros((rows, 1), dtype=torch.float32, device=tokens.device),
        )


def out_of_place(batch: Batch, _token_losses: torch.Tensor) -> torch.Tensor:
    """bool [B, L]: which predictions are not of the token that would be next from left to right."""
    length = batch.targets.shape[1]
    places = torch.arange(1, length + 1, device=batch.positions.device)
    return batch.positions[:, :length] != places
