"""BD3-LM (arXiv 2503.09573): diffusion inside blocks, left to right over blocks, all blocks of a sample in one pass.

The model reads 2L tokens: the noisy sample, then the clean one, both at rotary positions 0 ... L - 1. A noisy block
sees itself and the clean blocks before it, so its loss is that of denoising it after a clean prefix.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import masked_diffusion, noise
from card_scale.objectives.attention import AttentionKind, BlockDiffusion
from card_scale.objectives.base import Metric, Objective, check_choice, check_integer, check_number
from card_scale.objectives.batch import Batch, shared_positions
from card_scale.objectives.mask_interval import BLOCK_LOSS_VARIANCE, MAX_MASK, MIN_MASK, IntervalSearch

HIGHEST_WEIGHTED_RATE = 0.5
"""Intervals that begin above it train with weight 1 in place of 1 / m (as the authors' code does)."""


def attention_mask(length: int, block: int) -> torch.Tensor:
    """bool [2L, 2L], (query, key), noisy half first, true where the query may attend.

    A noisy block sees itself and the clean blocks before it; a clean block itself and the clean blocks before it.
    Raises ValueError unless ``block`` divides ``length``.
    """
    if block < 1 or length % block:
        raise ValueError(f"block {block} does not divide the length {length}")
    index = torch.arange(2 * length)
    return BlockDiffusion(block).visible(index[:, None], index[None, :], 2 * length)


@dataclass(frozen=True)
class BlockDiffusionObjective(Objective):
    """BD3-LM. Raises ConfigurationError, naming the key, for values outside the stated ranges."""

    name: ClassVar[str] = "bd3lm"
    decoders: ClassVar[tuple[str, ...]] = ("bd3lm",)
    in_place: ClassVar[bool] = True

    block: int = 16
    """Block size, a divisor of model.length, which itself makes it MDLM; 1 makes it an autoregressive model."""
    min_mask: float = masked_diffusion.SMALLEST_MASK_RATE
    """Lower end of the range of a block's mask rate in training; in evaluation it is always [0.001, 1]."""
    max_mask: float = 1.0
    """Upper end of the range of a block's mask rate in training."""
    search_interval: bool = False
    """Take over the mask-rate interval that each evaluation finds to have the least variance."""
    resample: bool = True
    """Corrupt a sample anew in each epoch; false repeats the corruption of its first."""

    def __post_init__(self) -> None:
        check_integer("block", self.block, 1)
        check_number("min_mask", self.min_mask, 0, 1)
        check_number("max_mask", self.max_mask, self.min_mask, 1)
        check_choice("search_interval", self.search_interval, (True, False))
        check_choice("resample", self.resample, (True, False))
        if self.search_interval and self.block == 1:
            raise ConfigurationError(
                "objective.search_interval is true, but blocks of one token (objective.block 1) are always fully "
                "masked; leave it false"
            )
        fewest, most = self._mask_counts()
        if max(fewest, 1) > most:
            raise ConfigurationError(
                f"objective.min_mask {self.min_mask} to objective.max_mask {self.max_mask} holds no whole number of "
                f"masks above 0 in a block of objective.block {self.block}; widen the interval"
            )

    @property
    def attention(self) -> AttentionKind:
        """Block diffusion's, of this block size."""
        return BlockDiffusion(self.block)

    @property
    def likelihood_is_exact(self) -> bool:
        """True for blocks of one token: each is then predicted, once, from all tokens before it."""
        return self.block == 1

    def check(self, length: int) -> None:
        """Raise ConfigurationError for a length that the block does not divide, or without a token to mask."""
        masked_diffusion.check_length(length)
        if length % self.block:
            divisors = ", ".join(str(size) for size in range(1, length + 1) if length % size == 0)
            raise ConfigurationError(
                f"objective.block {self.block} does not divide model.length {length}; valid: {divisors}"
            )

    def corrupt(self, samples: Samples, seed: int) -> Batch:
        """The training batch: a mask rate per block, stratified over all blocks of the global batch.

        Within a clipped interval the masked share of each block lies in it too, as if masks outside were drawn again.
        The first input is never masked. Raises ConfigurationError if L is 1 or no multiple of the block.
        """
        if self.block == 1:
            return self._fully_masked(samples)
        drawn = samples.resampled(self.resample)
        if self._mask_counts() == (0, self.block):
            return self._independent(samples, drawn, seed, masked_diffusion.TRAINING)
        blocks, length = self._blocks(samples), samples.tokens.shape[1] - 1
        levels = masked_diffusion.stratified_uniforms(
            drawn, blocks, seed, noise.Stream.NOISE_LEVEL, noise.Stream.STRATA
        )
        rates = masked_diffusion.mask_rates(levels, self.min_mask, self.max_mask)
        draws = noise.uniforms(seed, drawn.sample_ids, drawn.epochs, length, noise.Stream.MASK)
        counts = noise.uniforms(seed, drawn.sample_ids, drawn.epochs, blocks, noise.Stream.MASK_COUNT)
        masked = truncated_masks(rates, draws, counts, *self._mask_counts())
        return self._beside_clean(samples, masked, rates, weighted=self.min_mask <= HIGHEST_WEIGHTED_RATE)

    def likelihood(self, samples: Samples, seed: int) -> Batch:
        """One draw of the NELBO's estimator, mask rates in [0.001, 1]; exact with blocks of one token."""
        if self.block == 1:
            return self._fully_masked(samples)
        return self._independent(samples, samples, seed, masked_diffusion.EVALUATION)

    @property
    def mean_noise_level(self) -> float:
        """Of an evaluation, which draws from all rates."""
        return masked_diffusion.EVALUATED_MEAN_RATE

    def scored(self, length: int) -> int:
        """All but the first token."""
        return length - 1

    def normaliser(self, batch: Batch) -> torch.Tensor:
        """float64 scalar: the clean tokens of ``batch``."""
        return masked_diffusion.clean_tokens(batch)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Share of masks and cross-entropy of a masked token."""
        return masked_diffusion.metrics(self.name)

    @property
    def charts(self) -> dict[str, list[str]]:
        """Of the metrics and of the searched interval."""
        return masked_diffusion.charts(self.name) | {
            "interval of mask rates": [rf"{MIN_MASK}$", rf"{MAX_MASK}$"],
            "variance of a block's loss": [rf"{BLOCK_LOSS_VARIANCE}$"],
        }

    @property
    def observer(self) -> IntervalSearch | None:
        """The search for the interval of least variance, if it is asked for."""
        return IntervalSearch(self.block) if self.search_interval else None

    def state(self) -> dict[str, float]:
        """The interval of mask rates that is trained on."""
        return {MIN_MASK: self.min_mask, MAX_MASK: self.max_mask}

    def with_state(self, found: Mapping[str, float]) -> "BlockDiffusionObjective":
        """The objective on the interval that was found, if it searches."""
        if not self.search_interval:
            return self
        return dataclasses.replace(self, min_mask=found[MIN_MASK], max_mask=found[MAX_MASK])

    def _mask_counts(self) -> tuple[int, int]:
        """Fewest and most masks of a block. An end of the interval at 0.001 or 1 is no clip and forbids nothing."""
        # The tolerance keeps 0.3 * 10 from falling short of 3.
        fewest = math.ceil(self.min_mask * self.block - 1e-9)
        most = math.floor(self.max_mask * self.block + 1e-9)
        return (
            fewest if self.min_mask > masked_diffusion.SMALLEST_MASK_RATE else 0,
            most if self.max_mask < 1 else self.block,
        )

    def _blocks(self, samples: Samples) -> int:
        length = samples.tokens.shape[1] - 1
        self.check(length)
        return length // self.block

    def _independent(self, samples: Samples, drawn: Samples, seed: int, streams: masked_diffusion.Streams) -> Batch:
        blocks = self._blocks(samples)
        return _with_clean_half(masked_diffusion.independent_batch(samples, drawn, blocks, self.mask_id, seed, streams))

    def _fully_masked(self, samples: Samples) -> Batch:
        clean = samples.tokens[:, :-1]
        rates = torch.ones(clean.shape, dtype=torch.float64, device=clean.device)
        return self._beside_clean(samples, torch.ones_like(clean, dtype=torch.bool), rates, weighted=False)

    def _beside_clean(self, samples: Samples, masked: torch.Tensor, rates: torch.Tensor, *, weighted: bool) -> Batch:
        return _with_clean_half(
            masked_diffusion.in_place_batch(samples, masked, rates, self.mask_id, weighted=weighted)
        )


def _with_clean_half(noisy: Batch) -> Batch:
    """The in-place batch with the clean sample after the noisy one."""
    return noisy._replace(
        inputs=torch.cat((noisy.inputs, noisy.targets), dim=1),
        positions=shared_positions(noisy.positions[0].repeat(2), len(noisy.inputs)),
    )


def truncated_masks(
    rates: torch.Tensor, uniforms: torch.Tensor, count_uniforms: torch.Tensor, fewest: int, most: int
) -> torch.Tensor:
    """Independent masks, given that each block has from ``fewest`` to ``most`` of them.

    The distribution of drawing masks again until every block's count is in range, without the loop: the count comes
    from the binomial distribution cut to the range, the positions are any with that count.

    Args:
        rates: float64 [B, blocks].
        uniforms: [B, L] in [0, 1): the smallest of a block are masked.
        count_uniforms: [B, blocks] in [0, 1): decide the counts.
        fewest: at least 0.
        most: at most L / blocks.

    Returns:
        bool [B, L].
    """
    block = uniforms.shape[1] // rates.shape[1]
    counts = torch.arange(fewest, most + 1, dtype=torch.float64, device=rates.device)
    size = torch.full_like(counts, block)
    ways = torch.lgamma(size + 1) - torch.lgamma(counts + 1) - torch.lgamma(size - counts + 1)
    rate = rates.unsqueeze(2)
    log_probability = ways + torch.xlogy(counts, rate) + torch.xlogy(size - counts, 1 - rate)
    cumulative = log_probability.softmax(2).cumsum(2)
    above = (cumulative[..., :-1] <= count_uniforms.double().unsqueeze(2)).sum(2)
    count = fewest + above
    order = uniforms.unflatten(1, (-1, block)).argsort(dim=2, stable=True)
    chosen = torch.arange(block, device=rates.device) < count.unsqueeze(2)
    return torch.empty_like(chosen).scatter_(2, order, chosen).flatten(1)
