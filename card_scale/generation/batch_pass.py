"""Plans of several sequences, as one pass of the model."""

import torch
from torch import Tensor

from card_scale.generation.cache import CacheWriter, KeyValueCache, SequenceCache, behind_cached, filled
from card_scale.generation.decoder import Plan
from card_scale.generation.model import InferenceModel, Look, block_visible, power_of_two
from card_scale.generation.two_stream_pass import run_two_streams
from card_scale.generation.two_streams import TwoStreamCache, TwoStreamModel

SPAN = 128
"""A compiled pass reads the cache in whole multiples of this."""


def run_pass(model: InferenceModel, plans: list[Plan], cache: SequenceCache | None) -> tuple[Tensor, list[int]]:
    """Run one pass.

    Args:
        model: of the sequences. A compiled one gets passes of few different shapes, filled up.
        plans: one a sequence; shorter ones are filled up.
        cache: with a row for each sequence, or None where the plans hold whole sequences.

    Returns:
        (float32 [outputs, vocabulary] logits of all outputs that the plans read, one sequence after the other; how many
        each of them reads).
    """
    device = model.embedding.weight.device
    if isinstance(model, TwoStreamModel):
        assert isinstance(cache, TwoStreamCache)
        return run_two_streams(model, plans, cache)
    assert cache is None or isinstance(cache, KeyValueCache)
    inputs, outputs = max(len(plan.tokens) for plan in plans), max(len(plan.read) for plan in plans)
    span, counts = None, [len(plan.read) for plan in plans]
    if model.is_compiled and cache is not None:
        plans = plans + plans[:1] * (len(cache.lengths) - len(plans))
        span = min(-(-(max(cache.lengths) + inputs) // SPAN) * SPAN, cache.capacity)
        inputs, outputs = power_of_two(inputs), power_of_two(outputs)
    tokens = torch.tensor([filled(plan.tokens, inputs) for plan in plans], device=device)
    positions = torch.tensor([filled(plan.positions, inputs) for plan in plans], device=device)
    reads_all = span is None and all(count == inputs for count in counts)
    read = None if reads_all else torch.tensor([filled(plan.read, outputs) for plan in plans], device=device)
    look = Look(None)
    if cache is None:
        look.mask, look.is_causal = _seen(model, plans, positions, [0] * len(plans), None)
    else:
        sizes = None if span is None else [len(plan.tokens) for plan in plans]
        look.mask, look.is_causal = _seen(model, plans, positions, cache.lengths, span)
        look.writer = CacheWriter(cache, inputs, device, span, sizes)
    logits = model.run(tokens, positions, look, read)
    if len(counts) == 1:
        return logits[0, : counts[0]], counts
    rows = [row * outputs + number for row, count in enumerate(counts) for number in range(count)]
    return logits.flatten(0, 1)[torch.tensor(rows, device=device)], counts


def _seen(
    model: InferenceModel, plans: list[Plan], positions: Tensor, lengths: list[int], span: int | None
) -> tuple[Tensor | None, bool]:
    """Return (mask, whether it is causal): inputs see the cached positions, and of the pass what the plans say.

    With a ``span`` there is always a mask, of so many keys, since the compiled pass has one.
    """
    inputs, block = positions.shape[1], model.shape.block
    is_even = len(set(lengths)) == 1
    is_plain = is_even and all(plan.visible is None and len(plan.tokens) == inputs for plan in plans)
    if span is None and is_plain and block == 1 and (inputs == 1 or lengths[0] == 0):
        return None, inputs > 1
    if span is None and is_plain and block >= model.shape.length:
        return None, False
    within = _visible_within(plans, positions, block)
    if span is None and is_even:
        before = within.new_ones(*within.shape[:2], lengths[0])
        visible = torch.cat((before, within), -1)
    else:
        span = max(lengths) + inputs if span is None else span
        visible = behind_cached(within.expand(len(plans), -1, -1), lengths, span)
    return model.additive(visible).unsqueeze(1), False


def _visible_within(plans: list[Plan], positions: Tensor, block: int) -> Tensor:
    """bool [B or 1, Q, Q]: what the inputs of the pass see of each other. What only fills up sees itself."""
    inputs, device = positions.shape[1], positions.device
    if all(plan.visible is plans[0].visible and len(plan.tokens) == inputs for plan in plans):
        shared = plans[0].visible
        return block_visible(positions, block) if shared is None else shared.to(device).unsqueeze(0)
    within = torch.eye(inputs, dtype=torch.bool).repeat(len(plans), 1, 1)
    for row, plan in enumerate(plans):
        count = len(plan.tokens)
        visible = block_visible(torch.tensor(plan.positions), block) if plan.visible is None else plan.visible
        within[row, :count, :count] = visible
    return within.to(device)
