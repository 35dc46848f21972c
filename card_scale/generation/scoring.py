"""How likely a model finds given tokens: exactly where it is autoregressive, else by a bound.

A masked diffusion model gives a lower bound on the log-likelihood, estimated from draws: of a stretch (a block, or for
MDLM all that is scored) with c tokens, l of them are masked, l uniform in 1 ... c, and their cross-entropies weigh
c / l (arXiv 2502.09992, equation 6; the bound of any-order autoregressive models). Blocks of one token make it exact.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from card_scale.generation.model import InferenceModel
from card_scale.generation.sampling import sequence_keys
from card_scale.objectives.noise import Stream, uniforms


class Scored(NamedTuple):
    """Tokens to score behind a context of at least one token."""

    context: list[int]
    continuation: list[int]


class Score(NamedTuple):
    """What a model says of a continuation."""

    log_likelihood: float
    """Nats; a lower bound unless the model is exact."""
    is_greedy: bool
    """Whether each token is the most probable, given those before it (of a bound: all masked at once)."""
    variance: float = 0.0
    """Of the log-likelihood over other draws, estimated; 0 where it is exact."""


def is_exact(model: InferenceModel) -> bool:
    """Whether scores are log-likelihoods, not bounds."""
    return model.shape.block == 1


@torch.inference_mode()
def score(
    model: InferenceModel, requests: Sequence[Scored], *, batch: int = 16, draws: int = 32, seed: int = 0
) -> list[Score]:
    """Score continuations.

    Args:
        model: of any attention.
        requests: what to score; contexts that do not fit are cut on the left.
        batch: sequences a pass.
        draws: of a bound's estimate; exact scores need none.
        seed: of the draws, which depend on the request's content alone.

    Raises:
        ValueError: an empty context or continuation, or a continuation that the model's length does not hold.
    """
    for number, request in enumerate(requests):
        if not request.context or not request.continuation:
            raise ValueError(f"request {number} has an empty context or continuation")
        if len(request.continuation) > model.shape.length - model.shape.in_place:
            raise ValueError(
                f"request {number} has {len(request.continuation)} tokens to score, the model's length is "
                f"{model.shape.length}"
            )
    found: list[Score] = [Score(0.0, False)] * len(requests)
    # Like lengths together: less of a pass is filling.
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].context + requests[index].continuation))
    for begin in range(0, len(order), batch):
        indices = order[begin : begin + batch]
        if not model.shape.in_place:
            scores = _score_next_token(model, [requests[index] for index in indices])
        else:
            scores = [_score_in_place(model, requests[index], batch, draws, seed) for index in indices]
        for index, one in zip(indices, scores, strict=True):
            found[index] = one
    return found


def _score_next_token(model: InferenceModel, requests: list[Scored]) -> list[Score]:
    length = model.shape.length
    rows = [(request.context + request.continuation)[-(length + 1) :] for request in requests]
    longest = max(map(len, rows)) - 1
    device = model.embedding.weight.device
    # Filled up on the right, where a causal model does not look.
    inputs = torch.tensor([row[:-1] + [0] * (longest - len(row) + 1) for row in rows], device=device)
    chances = model.logits(inputs).log_softmax(-1)
    scores = []
    for row, request, logs in zip(rows, requests, chances, strict=True):
        count = len(request.continuation)
        logs = logs[len(row) - 1 - count : len(row) - 1]
        targets = torch.tensor(request.continuation, device=device)
        picked = logs.gather(1, targets[:, None])[:, 0]
        scores.append(Score(picked.double().sum().item(), bool((logs.argmax(-1) == targets).all())))
    return scores


def _score_in_place(model: InferenceModel, request: Scored, batch: int, draws: int, seed: int) -> Score:
    """The bound of one continuation: stretch by stretch, each behind clean tokens."""
    tokens = (request.context + request.continuation)[-model.shape.length :]
    first, block = len(tokens) - len(request.continuation), model.shape.block
    total, variance, is_greedy = 0.0, 0.0, True
    for begin in range(first // block * block, len(tokens), block):
        places = range(max(begin, first), min(begin + block, len(tokens)))
        losses, greedy = _stretch(model, tokens, places, batch, 1 if len(places) == 1 else draws, seed)
        total -= losses.mean().item()
        variance += _variance_of_mean(losses)
        is_greedy &= greedy
    return Score(total, is_greedy, variance)


def _stretch(
    model: InferenceModel, tokens: list[int], places: range, batch: int, draws: int, seed: int
) -> tuple[Tensor, bool]:
    """Return (weighted loss of a stretch in each draw [draws], whether it is greedy where all of it is masked)."""
    device = model.embedding.weight.device
    stop = min(-(-places.stop // model.shape.block) * model.shape.block, model.shape.length)
    # A block that the text does not fill is filled with masks, as it is while decoding.
    clean = torch.tensor(tokens[: places.stop] + [model.shape.mask_id] * (stop - places.stop), device=device)
    if model.shape.block >= model.shape.length:
        clean = clean[: places.stop]
    masked = _masks(places, draws, seed, tokens).to(device)
    targets = clean[places.start : places.stop]
    losses, greedy = [], True
    for rows in masked.split(batch):
        inputs = clean.repeat(len(rows), 1)
        inputs[:, places.start : places.stop].masked_fill_(rows, model.shape.mask_id)
        chances = model.logits(inputs)[:, places.start : places.stop].log_softmax(-1)
        picked = chances.gather(2, targets.expand(len(rows), -1)[..., None])[..., 0].double()
        weights = len(places) / rows.sum(1).double()
        losses.append(-(picked * rows).sum(1) * weights)
        everything = rows.all(1)
        if everything.any():
            greedy = bool((chances[everything][0].argmax(-1) == targets).all())
    return torch.cat(losses), greedy


def _variance_of_mean(losses: Tensor) -> float:
    """Variance of the mean of draws whose levels go evenly upwards: from the differences of neighbours, since what the
    level does to the loss is no error of a mean over all levels. Of one draw it is not known, and said to be 0."""
    if len(losses) < 2:
        return 0.0
    return (losses.diff().square().mean() / 2 / len(losses)).item()


def _masks(places: range, draws: int, seed: int, tokens: list[int]) -> Tensor:
    """bool [draws, count]: l of the count tokens masked, l spread evenly over 1 ... count and all of them once.

    Each stretch of a text has masks of its own, so that their errors are independent and add up as variances do.
    """
    ids, count = torch.arange(draws), len(places)
    (key,) = sequence_keys([[*tokens, places.start]])
    content = torch.full_like(ids, key % 2**32)
    order = uniforms(seed, ids, content, count, Stream.EVALUATION).argsort(1).argsort(1)
    shift = uniforms(seed, ids[:1], content[:1], 1, Stream.EVALUATION_STRATA).double()[0, 0]
    level = ((ids.double() + shift) / draws * count).floor().long().clamp(max=count - 1) + 1
    return order < level[:, None]
