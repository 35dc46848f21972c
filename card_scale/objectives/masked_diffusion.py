"""What MDLM (arXiv 2406.07524) and BD3-LM (arXiv 2503.09573) share: mask rates, masks and the weights of their bound.

A token is masked independently with its block's mask rate m and predicted in place; the loss of a masked token has
weight 1 / m, that of any other none. With m uniform this estimates, without bias, an upper bound on the negative
log-likelihood (the continuous-time NELBO under the linear schedule). MDLM has one block per sample.
"""

from typing import NamedTuple

import torch

from card_scale.data.samples import Samples
from card_scale.errors import ConfigurationError
from card_scale.objectives import noise
from card_scale.objectives.base import Metric, everywhere, masked_inputs, token_losses
from card_scale.objectives.batch import Batch, next_token_positions, shared_positions

SMALLEST_MASK_RATE = 1e-3
"""Mask rates are drawn above this (as by the baselines' authors): the weight 1 / m has infinite variance without. The
mean over [0.001, 1] in place of [0, 1] raises the bound by at most a thousandth of what context is worth."""


class Streams(NamedTuple):
    """Which sequences a corruption draws from."""

    levels: noise.Stream
    strata: noise.Stream
    masks: noise.Stream


TRAINING = Streams(noise.Stream.NOISE_LEVEL, noise.Stream.STRATA, noise.Stream.MASK)
EVALUATION = Streams(noise.Stream.EVALUATION_NOISE_LEVEL, noise.Stream.EVALUATION_STRATA, noise.Stream.EVALUATION)


def stratified_uniforms(
    samples: Samples, blocks: int, seed: int, jitter: noise.Stream, rotation: noise.Stream
) -> torch.Tensor:
    """float64 [B, blocks] in [0, 1): one number per block, spread evenly over the whole global batch.

    [0, 1) is cut into batch_size * blocks strata and every block of the global batch gets its own. Those of a sample
    lie evenly over [0, 1), and so do those of the k-th blocks of all samples: block and noise level both move the loss,
    so a batch whose k-th blocks shared one level would vary more than one without strata. Each number is uniform within
    its stratum, and all of a batch are rotated together, so that no place in the batch and no block is tied to a level.

    It depends on the sample's place in the global batch, not on the rank or micro-batch that holds it.
    """
    count = samples.batch_size * blocks
    place = samples.global_positions % samples.batch_size
    batch = samples.global_positions // samples.batch_size
    # A sample takes one stratum in each of `blocks` cells of [0, 1); the next sample begins with a later cell.
    shift = place * blocks // min(samples.batch_size, blocks)
    cell = (torch.arange(blocks, device=place.device) + shift.unsqueeze(1)) % blocks
    stratum = cell * samples.batch_size + place.unsqueeze(1)
    within = noise.uniforms(seed, samples.sample_ids, samples.epochs, blocks, jitter).double()
    turned = noise.uniforms(seed, batch, torch.zeros_like(batch), 1, rotation).double()
    return ((stratum + within) / count + turned) % 1.0


def mask_rates(uniforms: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """Mask rates float64 in [low, high] from ``uniforms`` in [0, 1), never below SMALLEST_MASK_RATE."""
    low, high = max(low, SMALLEST_MASK_RATE), max(high, SMALLEST_MASK_RATE)
    return low + (high - low) * uniforms


def independent_masks(rates: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Each position masked with its block's rate: ``rates`` [B, blocks], ``uniforms`` [B, L] → bool [B, L]."""
    blocks = uniforms.double().unflatten(1, (rates.shape[1], -1))
    return (blocks < rates.unsqueeze(2)).flatten(1)


EVALUATED_MEAN_RATE = (SMALLEST_MASK_RATE + 1) / 2
"""Mean of the rates of :func:`independent_batch`."""


def check_length(length: int) -> None:
    """Raise ConfigurationError where no token is left to mask: the first one never is."""
    if length < 2:
        raise ConfigurationError(f"model.length is {length}; masked diffusion needs at least 2")


def independent_batch(
    samples: Samples, drawn: Samples, blocks: int, mask_id: int, seed: int, streams: Streams
) -> Batch:
    """Prediction in place of independently masked tokens, each block's mask rate in [SMALLEST_MASK_RATE, 1], weighted.

    Args:
        samples: the first L tokens of each are used.
        drawn: the samples that the noise is a function of.
        blocks: of a sample, a divisor of L.
        mask_id: token id of [MASK].
        seed: the run's.
        streams: of training or of evaluation.

    Raises ConfigurationError if L is 1.
    """
    length = samples.tokens.shape[1] - 1
    check_length(length)
    if noise.is_fused(samples.tokens):
        return _fused(samples, drawn, blocks, mask_id, seed, streams)
    rates = mask_rates(stratified_uniforms(drawn, blocks, seed, streams.levels, streams.strata), 0.0, 1.0)
    masked = independent_masks(rates, noise.uniforms(seed, drawn.sample_ids, drawn.epochs, length, streams.masks))
    return in_place_batch(samples, masked, rates, mask_id, weighted=True)


def _fused(samples: Samples, drawn: Samples, blocks: int, mask_id: int, seed: int, streams: Streams) -> Batch:
    """:func:`independent_batch` in one launch."""
    # Imported only here: a machine without a GPU need not have Triton.
    from card_scale.objectives import fused_masked_diffusion

    keys = tuple(noise.stream_key(seed, stream) for stream in streams)
    made = fused_masked_diffusion.independently_masked(
        drawn._replace(tokens=samples.tokens), blocks, keys, mask_id, SMALLEST_MASK_RATE
    )
    return Batch(
        samples=samples,
        inputs=made.inputs,
        positions=next_token_positions(samples),
        targets=samples.tokens[:, :-1],
        weights=made.weights,
        masked=made.masked,
        noise_level=made.rates,
    )


def in_place_batch(
    samples: Samples, masked: torch.Tensor, rates: torch.Tensor, mask_id: int, *, weighted: bool
) -> Batch:
    """Prediction of the masked tokens at their own positions.

    Args:
        samples: the first L tokens of each are used.
        masked: bool [B, L]; the first position is kept clean whatever it says, since the model needs one clean token.
        rates: float64 [B, blocks] mask rates.
        mask_id: token id of [MASK].
        weighted: weight 1 / rate for masked tokens, else 1.
    """
    clean = samples.tokens[:, :-1]
    length = clean.shape[1]
    check_length(length)
    positions = torch.arange(length, device=clean.device)
    masked = masked & (positions > 0)
    weights = masked.to(torch.float32)
    if weighted:
        inverse = rates.reciprocal().to(torch.float32)
        weights = weights * inverse.repeat_interleave(length // rates.shape[1], dim=1)
    return Batch(
        samples=samples,
        inputs=clean.masked_fill(masked, mask_id),
        positions=shared_positions(positions, len(clean)),
        targets=clean,
        weights=weights,
        masked=masked,
        noise_level=rates.to(torch.float32),
    )


def clean_tokens(batch: Batch) -> torch.Tensor:
    """float64 scalar: number of clean tokens behind ``batch``, in rows that count: the denominator of the
    masked-diffusion losses.

    Not the sum of weights, which is random and would bias the bound.
    """
    rows, length = batch.targets.shape
    if batch.samples.valid is not None:
        return batch.samples.valid.sum(dtype=torch.float64) * length
    return torch.full((), rows * length, dtype=torch.float64, device=batch.targets.device)


def metrics(name: str) -> tuple[Metric, ...]:
    """Share of masks and cross-entropy of a masked token, of the objective called ``name``."""
    return (
        Metric(f"{name}/mask_ratio", masked_inputs, everywhere),
        Metric(f"{name}/loss_masked", token_losses, masked_inputs),
    )


def charts(name: str) -> dict[str, list[str]]:
    """TensorBoard's charts of :func:`metrics`."""
    return {"loss of a masked token": [rf"{name}/loss_masked$"], "masks": [rf"{name}/mask_ratio$"]}
