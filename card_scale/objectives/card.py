"""CARD (arXiv 2601.22031): next-token prediction from a corrupted prefix, masks in a soft tail, context-aware weights.

Every position is predicted, masked or not, from the corrupted tokens strictly before it; the weight of a prediction
falls with the masks close before it. The cost over plain autoregressive training is what stands in this file.
"""

import functools
import math
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar, Literal

import torch

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import noise
from card_scale.objectives.attention import AttentionKind, Causal
from card_scale.objectives.base import (
    Metric,
    Objective,
    Probe,
    check_choice,
    check_integer,
    check_number,
    everywhere,
    masked_inputs,
    token_losses,
)
from card_scale.objectives.batch import Batch, clean_next_token_batch, next_token_positions

MASKINGS = ("soft_tail", "uniform", "spans")

NOISE_LEVELS = (0.25, 0.5, 0.75, 1.0)
"""Noise levels at which the loss is evaluated."""

DECODING_BLOCK = 8
"""The denoising loss is reported for the k-th token of a block decoded at once, k = 1 ... this."""

SMALLEST_BETA = 1e-6
"""Below it a position without masks would drown all others in float32."""

SMALLEST_SPAN_RATE = 2.0**-24
"""Below it no draw of 24 bits but 0 would start a run."""

LARGEST_WEIGHT = 1e6
"""Above it the clean predictions beside a masked one would drown in float32."""

LONGEST_FUSED = 2**13
"""Inputs of a sample that the registers of a program of the GPU's kernel hold; longer ones take tensor operations."""

UNUSED_KEYS = MappingProxyType(
    {
        "soft_tail": ("span_rate", "span_length"),
        "uniform": ("span_rate", "span_length"),
        "spans": ("tail_factor", "min_noise", "max_noise"),
    }
)
"""Keys that each masking makes no use of: setting one is a mistake."""


def soft_tail_mask(noise_level: torch.Tensor, uniforms: torch.Tensor, tail_factor: float = 1.5) -> torch.Tensor:
    """Masks concentrated in the tail, harder to guess than scattered ones but with clean tokens left among them.

    ``noise_level`` [B] in [0, 1], ``uniforms`` [B, L] in [0, 1) → bool [B, L] with exactly
    N = max(1, floor(L * noise_level)) masks in each row, all within the last
    W = min(L, max(N, floor(tail_factor * N))) positions: those with the N smallest uniforms there, ties to the lower
    position. Both products are taken in float64. Raises ValueError if L is 0, where no mask fits.
    """
    length = _length(uniforms)
    count = _mask_count(noise_level, length)
    window = torch.maximum(count, (tail_factor * count).floor()).clamp(max=length)
    return _mask_smallest(uniforms, count, window)


def uniform_mask(noise_level: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The ablation of the soft tail: as many masks, anywhere.

    ``noise_level`` [B] in [0, 1], ``uniforms`` [B, L] → bool [B, L] with exactly N = max(1, floor(L * noise_level))
    masks in each row, those with the N smallest uniforms. Raises ValueError if L is 0.
    """
    length = _length(uniforms)
    count = _mask_count(noise_level, length)
    return _mask_smallest(uniforms, count, torch.full_like(count, length))


def span_mask(uniforms: torch.Tensor, rate: float = 0.03, longest: int = 4) -> torch.Tensor:
    """Short runs of masks all over the sequence: what parallel decoding meets, a clean prefix and a few masks.

    ``uniforms`` float32 [B, L] in [0, 1) → bool [B, L]. A position with u < ``rate`` starts a run of
    1 + floor(u / rate * longest) masks, computed in float64 and cut at the end of the row; runs may merge.
    """
    draws = uniforms.double()
    position = torch.arange(uniforms.shape[1], device=uniforms.device)
    run_ends = position + 1 + (draws / rate * longest).floor().long()
    return position < torch.where(draws < rate, run_ends, 0).cummax(1).values


def context_weights(masked: torch.Tensor, decay: float = 0.5, beta: float = 1.0) -> torch.Tensor:
    """Weight of the prediction made at each input position, from the masks at and before it.

    ``masked`` bool [B, L] → float32 [B, L]: 1 / (beta + S_j) with S_j = C_j + (1 - decay) * S_{j-1} and
    C_j = masked_j * (1 + masked_{j-1}), so a mask after a mask counts double. Input position j predicts token j + 1, so
    the weight sees nothing the prediction does not. Without masks the weight is 1 / beta.
    """
    current = masked.to(torch.float32)
    ambiguity = current.clone()
    ambiguity[:, 1:].add_(current[:, 1:] * current[:, :-1])

    # The recurrence by doubling: after a pass, each position holds the sum over twice as many predecessors. Passes that
    # could only add what float32 cannot see next to beta are left out (decay 0.5: five passes whatever the length).
    # Multiplication and addition stay two operations: fused on some elements only, they would let a weight's last bit
    # depend on its place in the batch.
    keep = 1.0 - decay
    length = masked.shape[1]
    largest = 2.0 * min(float(length), 1.0 / decay if decay > 0 else math.inf)
    reach = 1
    while reach < length and largest * keep**reach > beta * 2.0**-26:
        further = ambiguity.clone()
        further[:, reach:].add_(ambiguity[:, :-reach] * keep**reach)
        ambiguity = further
        reach *= 2
    return (ambiguity + beta).reciprocal()


@dataclass(frozen=True)
class CardObjective(Objective):
    """CARD and its ablations. Raises ConfigurationError, naming the key, for values outside the stated ranges."""

    name: ClassVar[str] = "card"
    attention: ClassVar[AttentionKind] = Causal()
    likelihood_is_exact: ClassVar[bool] = True
    decoders: ClassVar[tuple[str, ...]] = ("ar", "self_verified", "card")

    tail_factor: float = 1.5
    """Masks fall into the last tail_factor * N positions (N masks); 1 is a solid block."""
    decay: float = 0.5
    """How fast the effect of a mask on later weights fades, in [0, 1]; 1 looks at the last input only."""
    beta: float = 1.0
    """Offset in the weight 1 / (beta + S); without masks the weight is 1 / beta."""
    reweight: bool = True
    """Weight the loss by context; false gives every clean input's prediction weight 1."""
    masked_weight: float = 1.0
    """Weight of the predictions made at masked inputs (reweight=false); above 1 favours drafts."""
    masking: Literal["soft_tail", "uniform", "spans"] = "soft_tail"
    """Where the masks fall: in the tail, anywhere, or in short runs all over the sequence."""
    min_noise: float = 0.0
    """Lower end of the noise level's range."""
    max_noise: float = 1.0
    """Upper end of the noise level's range."""
    resample: bool = True
    """Corrupt a sample anew in each epoch; false repeats the corruption of its first."""
    span_rate: float = 0.03
    """Share of positions at which a run of masks starts (spans)."""
    span_length: int = 4
    """Longest run; lengths are uniform from 1 to it, and runs may merge (spans)."""

    def __post_init__(self) -> None:
        check_number("tail_factor", self.tail_factor, 1, math.inf)
        check_number("decay", self.decay, 0, 1)
        check_number("beta", self.beta, SMALLEST_BETA, math.inf)
        check_number("min_noise", self.min_noise, 0, 1)
        check_number("max_noise", self.max_noise, self.min_noise, 1)
        check_choice("reweight", self.reweight, (True, False))
        check_number("masked_weight", self.masked_weight, 0, LARGEST_WEIGHT)
        check_choice("masking", self.masking, MASKINGS)
        check_number("span_rate", self.span_rate, SMALLEST_SPAN_RATE, 1)
        check_integer("span_length", self.span_length, 1)
        self._check_unused(f"masking={self.masking}", UNUSED_KEYS[self.masking])
        if self.reweight:
            self._check_unused("reweight=true", ("masked_weight",))

    def _check_unused(self, setting: str, keys: tuple[str, ...]) -> None:
        default = {field.name: field.default for field in fields(self)}
        for key in keys:
            if getattr(self, key) != default[key]:
                raise ConfigurationError(
                    f"objective.{key} is {getattr(self, key)}, which objective.{setting} does not use; "
                    f"leave it at {default[key]}"
                )

    def check(self, length: int) -> None:
        """Raise ConfigurationError where no input is left to mask: the first one never is."""
        if length < 2:
            raise ConfigurationError(f"model.length is {length}; objective.name card needs at least 2")

    def corrupt(self, samples: Samples, seed: int) -> Batch:
        """The training batch, a pure function of tokens, sample ids, epochs and seed.

        Each sample has its own noise level; under spans it is the share of masks that were drawn. The first input is
        never masked, since the model needs one clean token to start from. Raises ConfigurationError if L is 1, where no
        other input is left.
        """
        drawn = samples.resampled(self.resample)
        if noise.is_fused(samples.tokens) and samples.tokens.shape[1] - 1 <= LONGEST_FUSED:
            return self._fused(samples, drawn, seed)
        if self.masking == "spans":
            draws = self._mask_draws(drawn, seed, noise.Stream.MASK)
            masked = _with_clean_first(span_mask(draws, self.span_rate, self.span_length))
            noise_level = masked.float().mean(1)
        else:
            draw = noise.uniforms(seed, drawn.sample_ids, drawn.epochs, 1, noise.Stream.NOISE_LEVEL)[:, 0].double()
            noise_level = (self.min_noise + (self.max_noise - self.min_noise) * draw).to(torch.float32)
            masked = self._masked(drawn, noise_level, seed, noise.Stream.MASK)
        return self._with_masks(samples, masked, noise_level, self._weights(masked))

    def _fused(self, samples: Samples, drawn: Samples, seed: int) -> Batch:
        """:meth:`corrupt` in one launch; ``drawn`` are the samples that it is a function of."""
        # Imported only here: a machine without a GPU need not have Triton.
        from card_scale.objectives import fused_card

        self.check(samples.tokens.shape[1] - 1)
        level_key, mask_key = (
            noise.stream_key(seed, stream) for stream in (noise.Stream.NOISE_LEVEL, noise.Stream.MASK)
        )
        rule = fused_card.Rule(**{key: getattr(self, key) for key in fused_card.Rule._fields})
        made = fused_card.corrupted(drawn, level_key, mask_key, self.mask_id, rule)
        return Batch(
            samples=samples,
            inputs=made.inputs,
            positions=next_token_positions(samples),
            targets=samples.tokens[:, 1:],
            weights=made.weights,
            masked=made.masked,
            noise_level=made.noise_level[:, None],
        )

    def likelihood(self, samples: Samples, seed: int) -> Batch:  # noqa: ARG002 - nothing is drawn
        """The samples without masks and with weight 1: the exact likelihood, left to right."""
        return clean_next_token_batch(samples)

    def scored(self, length: int) -> int:
        """Every input predicts the token after it."""
        return length

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Share of masks, plain cross-entropy, and that after clean context alone, which is comparable with AR's."""
        return (
            Metric("card/mask_ratio", masked_inputs, everywhere),
            Metric("card/loss_unweighted", token_losses, everywhere),
            Metric("card/loss_clean_context", token_losses, clean_context),
        )

    @property
    def charts(self) -> dict[str, list[str]]:
        """Losses under noise, plain losses and the share of masks."""
        return {
            "loss by noise level": [r"card/validation_nll_noise_"],
            "loss of the k-th masked token": [r"card/validation_nll_masked_"],
            "unweighted loss": [r"card/loss_unweighted$", r"card/loss_clean_context$"],
            "masks": [r"card/mask_ratio$"],
        }

    def probes(self, length: int) -> tuple[Probe, ...]:
        """The losses under noise that parallel decoding lives on. Spans have no noise level, hence no loss by it.

        ``card/validation_nll_noise_T`` is the unweighted loss at noise level T, ``card/validation_nll_masked_K`` the
        loss of a token predicted after K - 1 masks and clean text before them.
        """
        at_levels = [
            Probe(functools.partial(self._at_level, level), functools.partial(_mean_loss, level))
            for level in (() if self.masking == "spans" else NOISE_LEVELS)
        ]
        block = min(DECODING_BLOCK, length)
        tail = Probe(
            lambda samples, _seed: self.masked_tail(samples, block - 1),
            functools.partial(_losses_in_block, block),
        )
        return (*at_levels, tail)

    def at_noise_level(self, samples: Samples, noise_level: torch.Tensor, seed: int) -> Batch:
        """An evaluation batch at given noise levels, every weight 1 so that its mean loss is the plain cross-entropy.

        ``noise_level`` is float [B] in [0, 1]. A sample has the same uniforms at every level, step and epoch, so that
        two evaluations differ by what is compared, not by the draw. Raises ConfigurationError if L is 1, ValueError
        under spans.
        """
        if self.masking == "spans":
            raise ValueError("objective.masking=spans has no noise level")
        drawn = samples._replace(epochs=torch.zeros_like(samples.epochs))
        masked = self._masked(drawn, noise_level, seed, noise.Stream.EVALUATION)
        return self._with_masks(samples, masked, noise_level.to(torch.float32), None)

    def _at_level(self, level: float, samples: Samples, seed: int) -> Batch:
        levels = torch.full((len(samples.tokens),), level, device=samples.tokens.device)
        return self.at_noise_level(samples, levels, seed)

    def masked_tail(self, samples: Samples, count: int) -> Batch:
        """The samples with the last ``count`` inputs masked, every weight 1.

        This is what the first forward pass over a block of K = count + 1 tokens sees in parallel decoding: clean
        tokens, then K - 1 masks; the last K outputs predict the block. Raises ValueError unless 0 <= count <= L - 1.
        """
        tokens = samples.tokens
        length = tokens.shape[1] - 1
        if not 0 <= count <= length - 1:
            raise ValueError(f"count must be from 0 to {length - 1} for {length} inputs, got {count}")
        positions = torch.arange(length, device=tokens.device)
        masked = (positions >= length - count).repeat(tokens.shape[0], 1)
        share = count / (length - 1) if count else 0.0
        noise_level = torch.full((tokens.shape[0],), share, dtype=torch.float32, device=tokens.device)
        return self._with_masks(samples, masked, noise_level, None)

    def _weights(self, masked: torch.Tensor) -> torch.Tensor | None:
        """float32 [B, L], or None where every weight is 1."""
        if self.reweight:
            return context_weights(masked, self.decay, self.beta)
        return None if self.masked_weight == 1 else torch.where(masked, self.masked_weight, 1.0)

    def _masked(self, samples: Samples, noise_level: torch.Tensor, seed: int, stream: noise.Stream) -> torch.Tensor:
        """bool [B, L]: the masked inputs at given noise levels, never the first."""
        draws = self._mask_draws(samples, seed, stream)
        if self.masking == "soft_tail":
            return _with_clean_first(soft_tail_mask(noise_level, draws, self.tail_factor))
        return _with_clean_first(uniform_mask(noise_level, draws))

    def _mask_draws(self, samples: Samples, seed: int, stream: noise.Stream) -> torch.Tensor:
        """float32 [B, L - 1]: a uniform number for each input but the first."""
        length = samples.tokens.shape[1] - 1
        self.check(length)
        return noise.uniforms(seed, samples.sample_ids, samples.epochs, length - 1, stream)

    def _with_masks(
        self, samples: Samples, masked: torch.Tensor, noise_level: torch.Tensor, weights: torch.Tensor | None
    ) -> Batch:
        """The next-token batch with [MASK] at ``masked``; weight 1 where no weights are given."""
        clean = clean_next_token_batch(samples)
        return clean._replace(
            inputs=clean.inputs.masked_fill(masked, self.mask_id),
            masked=masked,
            noise_level=noise_level[:, None],
            weights=clean.weights if weights is None else weights,
        )


def _with_clean_first(masked: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pad(masked, (1, 0), value=False)


def clean_context(batch: Batch) -> torch.Tensor:
    """bool [B, L]: the predictions that no mask precedes, neither their own input nor one before it."""
    return batch.masked.cumsum(1) == 0


def _mean_loss(level: float, by_position: torch.Tensor) -> dict[str, float]:
    return {f"card/validation_nll_noise_{level}": by_position.mean().item()}


def _losses_in_block(block: int, by_position: torch.Tensor) -> dict[str, float]:
    losses = by_position[-block:].tolist()
    return {f"card/validation_nll_masked_{number}": loss for number, loss in enumerate(losses, start=1)}


def _length(uniforms: torch.Tensor) -> int:
    """Number of positions, which must not be 0."""
    if uniforms.shape[1] == 0:
        raise ValueError("at least one position is needed to place a mask, got uniforms of shape [B, 0]")
    return uniforms.shape[1]


def _mask_count(noise_level: torch.Tensor, length: int) -> torch.Tensor:
    """float64 [B]: max(1, floor(length * noise_level)), an integer value."""
    return (length * noise_level.double()).floor().clamp(min=1, max=length)


def _mask_smallest(uniforms: torch.Tensor, count: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """bool [B, L]: the ``count`` smallest uniforms among the last ``window`` positions of each row."""
    position = torch.arange(uniforms.shape[1], device=uniforms.device)
    outside = position < uniforms.shape[1] - window.unsqueeze(1)
    order = uniforms.masked_fill(outside, 2.0).argsort(dim=1, stable=True)
    chosen = position < count.unsqueeze(1)
    return torch.empty_like(chosen).scatter_(1, order, chosen)
