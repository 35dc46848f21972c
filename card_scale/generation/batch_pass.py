"""Plans of several sequences, as one pass of the model."""

import torch
from torch import Tensor

from card_scale.generation.cache import CacheWriter, KeyValueCache
from card_scale.generation.decoder import Plan
from card_scale.generation.model import InferenceModel, Look, block_visible


def run_pass(model: InferenceModel, plans: list[Plan], cache: KeyValueCache | None) -> tuple[Tensor, list[int]]:
    """Run one pass.

    Args:
        model: of the sequences.
        plans: one a sequence; shorter ones are filled up.
        cache: with a row for each sequence, or None where the plans hold whole sequences.

    Returns:
        (float32 [outputs, vocabulary] logits of all outputs that the plans read, one sequence after the other; how many
        each of them reads).
    """
    device = model.embedding.weight.device
    inputs = max(len(plan.tokens) for plan in plans)
    counts = [len(plan.read) for plan in plans]
    outputs = max(counts)
    tokens = torch.tensor([_filled(plan.tokens, inputs) for plan in plans], device=device)
    positions = torch.tensor([_filled(plan.positions, inputs) for plan in plans], device=device)
    reads_all = all(len(plan.read) == inputs for plan in plans)
    read = None if reads_all else torch.tensor([_filled(plan.read, outputs) for plan in plans], device=device)
    writer = None if cache is None else CacheWriter(cache, inputs, device)
    logits = model(tokens, positions, _look(model, plans, positions, writer), read)
    if len(plans) == 1:
        return logits[0], counts
    rows = [row * outputs + number for row, count in enumerate(counts) for number in range(count)]
    return logits.flatten(0, 1)[torch.tensor(rows, device=device)], counts


def _filled(values: list[int], length: int) -> list[int]:
    return values + [0] * (length - len(values))


def _look(model: InferenceModel, plans: list[Plan], positions: Tensor, writer: CacheWriter | None) -> Look:
    """What the inputs see: the cached positions of their sequence, and of the pass what the plans say."""
    inputs, block = positions.shape[1], model.shape.block
    lengths = [0] * len(plans) if writer is None else writer.cache.lengths
    is_plain = len(set(lengths)) == 1 and all(plan.visible is None and len(plan.tokens) == inputs for plan in plans)
    if is_plain and block == 1 and (inputs == 1 or lengths[0] == 0):
        return Look(None, is_causal=inputs > 1, writer=writer)
    if is_plain and block >= model.shape.length:
        return Look(None, writer=writer)
    within = _visible_within(plans, positions, block)
    if len(set(lengths)) == 1:
        before = within.new_ones(*within.shape[:2], lengths[0])
        visible = torch.cat((before, within), -1)
    else:
        behind = torch.arange(max(lengths) + inputs, device=positions.device) - torch.tensor(
            lengths, device=positions.device
        ).unsqueeze(1)
        index = behind.clamp(0, inputs - 1).unsqueeze(1).expand(-1, inputs, -1)
        here = ((behind >= 0) & (behind < inputs)).unsqueeze(1)
        visible = within.expand(len(plans), -1, -1).gather(2, index) & here | (behind < 0).unsqueeze(1)
    return Look(model.additive(visible).unsqueeze(1), writer=writer)


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
