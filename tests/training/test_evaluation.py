"""Evaluation against a plain loop over the model's own logits, padding rows and layouts included."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from card_scale.data.loader import EvaluationBatches
from card_scale.distributed import parallel_dims, process_groups
from card_scale.training.evaluator import Evaluator
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import VOCABULARY, engine_of, small_config

SAMPLES = 11  # no multiple of the batch of 8
SAMPLE_IDS = 3 * np.arange(SAMPLES) + 1
"""A subset spread over its stream: a sample's id is not its place among those that are evaluated."""


class FixedStream:
    """A validation stream of random tokens, of which those of SAMPLE_IDS can be read."""

    sample_count = 3 * SAMPLES

    def __init__(self, length: int):
        generator = torch.Generator().manual_seed(5)
        self.tokens = torch.randint(5, VOCABULARY.size, (SAMPLES, length + 1), generator=generator).numpy()

    def samples(self, ids):
        return self.tokens[np.searchsorted(SAMPLE_IDS, ids)]


def evaluate(config):
    """Return (results of Evaluator, mean clean loss of every position by a plain loop; None beside one rank)."""
    process_groups.initialize(parallel_dims.plan(config, dist.get_world_size()), 60)
    engine = engine_of(config)
    stream = FixedStream(config.model.length)
    batches = EvaluationBatches(
        stream,
        SAMPLE_IDS,
        global_batch=config.train.global_batch,
        micro_batch=config.train.micro_batch,
        data_parallel_rank=process_groups.data_rank(),
        data_parallel_size=dist.get_world_size(process_groups.data_group()),
    )
    results = Evaluator(engine, config, batches)(config.objective)
    if dist.get_world_size() > 1:
        return results, None
    return results, by_hand(engine.chunks[0], stream, config.model.length)


@torch.no_grad()
def by_hand(model, stream, length):
    """Return {result name: mean loss}, one sample and one position at a time, in float64."""
    clean, masked = [], [[] for _ in range(8)]
    for row in torch.from_numpy(stream.tokens):
        for block in (False, True):
            inputs = row[:-1].clone()
            if block:
                inputs[-7:] = VOCABULARY.mask_id
            logits = model(inputs[None], torch.arange(length)[None])[:, 0].double()
            logits[:, VOCABULARY.mask_id] = -torch.inf
            logits[:, VOCABULARY.size :] = -torch.inf
            for position in range(length):
                loss = -logits[position].log_softmax(-1)[row[position + 1]].item()
                if not block:
                    clean.append(loss)
                elif position >= length - 8:
                    masked[position - length + 8].append(loss)
    means = {"validation_nll": sum(clean) / len(clean)}
    return means | {f"card/validation_nll_masked_{k + 1}": sum(m) / len(m) for k, m in enumerate(masked)}


@pytest.fixture(scope="module")
def one_rank():
    return run_ranks(evaluate, 1, small_config(parallel=dict(zero=0)), deadline=60)[0]


def test_clean_and_denoising_losses_are_the_plain_loops(one_rank):
    results, expected = one_rank
    assert {name: results[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_every_rank_of_another_layout_gets_the_same(one_rank):
    config = small_config(parallel=dict(pipeline=2, zero=3), train=dict(micro_batch=2))
    for results, _ in run_ranks(evaluate, 4, config, deadline=90):
        assert results == pytest.approx(one_rank[0], rel=1e-5)


def test_ar_has_no_denoising_losses():
    config = small_config(parallel=dict(zero=0), objective=dict(name="ar"))
    results, _ = run_ranks(evaluate, 1, config, deadline=60)[0]
    assert results.keys() == {"validation_nll", "validation_perplexity"}
