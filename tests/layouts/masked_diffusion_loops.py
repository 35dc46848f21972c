"""MDLM's and BD3-LM's corruption once more, in Python floats, one block and one position at a time.

In common with the library are the uniform numbers alone, tested by themselves.
"""

import math
from typing import NamedTuple

import torch

from card_scale.config import Config
from card_scale.data.samples import Samples
from card_scale.objectives.noise import Stream, uniforms
from tests.layouts.trajectory import VOCABULARY

SMALLEST_RATE = 0.001


class Corrupted(NamedTuple):
    """What the model reads and predicts: inputs [B][M], positions [M], sight [M][M], weights and masks [B][L]."""

    inputs: list[list[int]]
    positions: list[int]
    sees: list[list[bool]]
    weights: list[list[float]]
    masked: list[list[bool]]
    rates: list[list[float]]
    """Mask rates, [B][blocks]."""


class Noise(NamedTuple):
    """The streams of uniform numbers of training, or of an evaluation."""

    level: Stream
    rotation: Stream
    mask: Stream


TRAINING = Noise(Stream.NOISE_LEVEL, Stream.STRATA, Stream.MASK)
EVALUATION = Noise(Stream.EVALUATION_NOISE_LEVEL, Stream.EVALUATION_STRATA, Stream.EVALUATION)


def training_batch(config: Config, batch: Samples) -> Corrupted:
    """Return what an update of ``mdlm`` or ``bd3lm`` makes of the whole global batch."""
    objective = config.objective
    if objective.name == "mdlm":
        return corrupted(config, batch, config.train.global_batch, TRAINING, SMALLEST_RATE, 1.0)
    return corrupted(config, batch, config.train.global_batch, TRAINING, objective.min_mask, objective.max_mask)


def evaluation_batch(config: Config, batch: Samples, samples: int) -> Corrupted:
    """Return one draw of the bound over ``samples`` validation samples, or at block 1 the exact likelihood."""
    return corrupted(config, batch, samples, EVALUATION, SMALLEST_RATE, 1.0)


def corrupted(config: Config, batch: Samples, batch_size: int, noise: Noise, low: float, high: float) -> Corrupted:
    length = config.model.length
    in_blocks = config.objective.name == "bd3lm"
    block = config.objective.block if in_blocks else length
    inputs, weights, masks, all_rates = [], [], [], []
    for row in range(len(batch.sample_ids)):
        tokens = batch.tokens[row].tolist()
        rates = mask_rates(config.run.seed, batch, row, batch_size, length // block, noise, low, high)
        masked = masked_positions(config, batch, row, rates, block, noise, low, high)
        full = in_blocks and block == 1
        inverse = [1.0 if full or low > 0.5 else 1 / rates[position // block] for position in range(length)]
        noisy = [VOCABULARY.mask_id if masked[position] else tokens[position] for position in range(length)]
        inputs.append(noisy + tokens[:length] if in_blocks else noisy)
        weights.append([inverse[position] if masked[position] else 0.0 for position in range(length)])
        masks.append(masked)
        all_rates.append(rates)
    positions = [*range(length), *range(length)] if in_blocks else [*range(length)]
    sees = sight_of_blocks(length, block) if in_blocks else [[True] * length for _ in range(length)]
    return Corrupted(inputs, positions, sees, weights, masks, all_rates)


def _draws(seed: int, sample: torch.Tensor, epoch: torch.Tensor, count: int, stream: Stream) -> list[float]:
    return uniforms(seed, sample.reshape(1), epoch.reshape(1), count, stream)[0].tolist()


def mask_rates(
    seed: int, batch: Samples, row: int, batch_size: int, blocks: int, noise: Noise, low: float, high: float
) -> list[float]:
    """[0, 1) is cut into a cell for each block of a sample, each cell into a stratum for each sample of the batch.

    A sample takes its stratum of every cell; its first block begins with another cell than the sample's before it, so
    that the cells of the samples' k-th blocks go around. Levels are jittered within the stratum and rotated together.
    """
    turn, place = divmod(int(batch.global_positions[row]), batch_size)
    (rotation,) = _draws(seed, torch.tensor(turn), torch.tensor(0), 1, noise.rotation)
    jitter = _draws(seed, batch.sample_ids[row], batch.epochs[row], blocks, noise.level)
    rates = []
    for number in range(blocks):
        first_cell = place if batch_size >= blocks else math.floor(place * blocks / batch_size)
        stratum = (number + first_cell) % blocks * batch_size + place
        level = (stratum + jitter[number]) / (batch_size * blocks) + rotation
        rates.append(max(low, SMALLEST_RATE) + (high - max(low, SMALLEST_RATE)) * (level - math.floor(level)))
    return rates


def masked_positions(
    config: Config, batch: Samples, row: int, rates: list[float], block: int, noise: Noise, low: float, high: float
) -> list[bool]:
    length, seed = config.model.length, config.run.seed
    where = batch.sample_ids[row], batch.epochs[row]
    draws = _draws(seed, *where, length, noise.mask)
    masked = []
    for number, rate in enumerate(rates):
        own = draws[number * block : (number + 1) * block]
        if config.objective.name == "bd3lm" and block == 1:
            masked.append(True)
        elif low > SMALLEST_RATE or high < 1:
            count_draw = _draws(seed, *where, len(rates), Stream.MASK_COUNT)[number]
            allowed = [n for n in range(block + 1) if (low <= n / block or low <= SMALLEST_RATE) and n / block <= high]
            count = binomial_count(rate, block, allowed, count_draw)
            chosen = sorted(range(block), key=lambda position: own[position])[:count]
            masked += [position in chosen for position in range(block)]
        else:
            masked += [draw < rate for draw in own]
    return [False, *masked[1:]]


def binomial_count(rate: float, size: int, allowed: list[int], draw: float) -> int:
    """The count at which the distribution function, of the binomial given ``allowed``, exceeds ``draw``."""
    chances = [math.comb(size, n) * rate**n * (1 - rate) ** (size - n) for n in allowed]
    below = 0.0
    for count, chance in zip(allowed, chances, strict=True):
        below += chance / sum(chances)
        if draw < below:
            return count
    return allowed[-1]


def sight_of_blocks(length: int, block: int) -> list[list[bool]]:
    """[query][key] over the noisy sample and the clean one behind it, from the words of the paper."""
    sees = [[False] * (2 * length) for _ in range(2 * length)]
    for query in range(length):
        for key in range(length):
            same, earlier = key // block == query // block, key // block < query // block
            sees[query][key] = same
            sees[query][length + key] = earlier
            sees[length + query][length + key] = same or earlier
    return sees
