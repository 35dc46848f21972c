"""A toy masked-diffusion model that is a table, and its likelihood bounds by enumeration of all masks and orders."""

import itertools
import math
from dataclasses import dataclass

import torch

from card_scale.objectives.batch import Batch


@dataclass(frozen=True)
class TableModel:
    """Any function at all of what is visible: a distribution over the letters for each input and position.

    Letters are 0 ... letters - 1, [MASK] is ``letters``. A block is predicted from its own noisy tokens and the clean
    blocks before it; what comes after it is not seen. One block of the whole length is MDLM.
    """

    letters: int
    length: int
    block: int
    log_probabilities: torch.Tensor
    """float64 [(letters + 1) ** length, length, letters]; the index is the visible input, read as a number."""

    @classmethod
    def random(cls, letters: int, length: int, block: int, seed: int) -> "TableModel":
        generator = torch.Generator().manual_seed(seed)
        shape = ((letters + 1) ** length, length, letters)
        logits = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return cls(letters, length, block, logits.log_softmax(-1))

    def token_losses(self, batch: Batch) -> torch.Tensor:
        """float64 [B, L] cross-entropies of an objective's batch, from its inputs and targets alone."""
        noisy, clean = batch.inputs[:, : self.length], batch.inputs[:, -self.length :]
        places = (self.letters + 1) ** torch.arange(self.length)
        position = torch.arange(self.length)
        losses = []
        for begin in range(0, self.length, self.block):
            end = begin + self.block
            seen = torch.where(position < begin, clean, noisy) * (position < end)
            table = self.log_probabilities[(seen * places).sum(1), begin:end]
            losses.append(-table.gather(2, batch.targets[:, begin:end, None]).squeeze(2))
        return torch.cat(losses, dim=1)

    def loss(self, text: tuple[int, ...], block: int, masked: frozenset[int], position: int) -> float:
        """Cross-entropy of the token at ``position`` when the positions ``masked`` of the ``block``-th are masked."""
        index = 0
        for place, letter in enumerate(text[: (block + 1) * self.block]):
            index += (self.letters if place in masked else letter) * (self.letters + 1) ** place
        return -self.log_probabilities[index, position, text[position]].item()

    def blocks(self) -> list[list[int]]:
        """Positions of each block that can be masked: all but the first of the sample."""
        return [
            [position for position in range(begin, begin + self.block) if position > 0]
            for begin in range(0, self.length, self.block)
        ]


def subsets(positions: list[int]) -> list[frozenset[int]]:
    return [
        frozenset(chosen) for size in range(len(positions) + 1) for chosen in itertools.combinations(positions, size)
    ]


def mean_of_powers(low: float, masked: int, clean: int) -> float:
    """Mean over m uniform in [low, 1] of m^(masked - 1) * (1 - m)^clean, in closed form; ``masked`` is at least 1."""
    terms = [math.comb(clean, j) * (-1) ** j * (1 - low ** (masked + j)) / (masked + j) for j in range(clean + 1)]
    return math.fsum(terms) / (1 - low)


def bound(model: TableModel, text: tuple[int, ...], low: float) -> float:
    """Nats of ``text`` in the NELBO with mask rates uniform in [low, 1] (0 is the NELBO proper), exactly."""
    total = 0.0
    for block, positions in enumerate(model.blocks()):
        for masked in subsets(positions):
            if masked:
                weight = mean_of_powers(low, len(masked), len(positions) - len(masked))
                total += weight * math.fsum(model.loss(text, block, masked, position) for position in masked)
    return total


def over_orders(model: TableModel, text: tuple[int, ...]) -> tuple[float, float]:
    """(mean negative log-likelihood over the orders of unmasking, -log of the mean likelihood) of ``text``.

    The second is the exact negative log-likelihood of the model that draws an order, then a token at a time: left to
    right over blocks, in any order within one.
    """
    mean = exact = 0.0
    for block, positions in enumerate(model.blocks()):
        paths = []
        for order in itertools.permutations(positions):
            hidden = set(order)
            path = 0.0
            for position in order:
                path += model.loss(text, block, frozenset(hidden), position)
                hidden.remove(position)
            paths.append(path)
        mean += math.fsum(paths) / len(paths)
        exact -= math.log(math.fsum(math.exp(-path) for path in paths) / len(paths))
    return mean, exact
