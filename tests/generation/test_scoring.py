"""Scores of given tokens: exact ones against a loop, bounds against full enumeration of masks."""

import itertools
import math

import numpy as np
import pytest
import torch

from card_scale.data.stream import PackedStream
from card_scale.errors import DataError
from card_scale.generation import load
from card_scale.generation.perplexity import dataset_perplexity
from card_scale.generation.scoring import Scored, score
from tests.corpora import write_dataset
from tests.generation.conftest import MASK_ID, make_model, prompt


def log_chances(model, tokens):
    return torch.log_softmax(model.logits(torch.tensor([tokens]))[0].double(), -1)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_exact_scores_are_sums_of_conditionals(batch):
    model = make_model(3.0)
    requests = [Scored(prompt(n, n), prompt(m, 10 * n + m)) for n, m in [(1, 1), (5, 3), (2, 20), (40, 8), (9, 40)]]
    # The last two are cut on the left: 48 inputs and the token after them are what the model holds.
    requests += [Scored(prompt(100, 1), prompt(4, 2)), Scored(prompt(30, 3), prompt(48, 4))]
    for found, request in zip(score(model, requests, batch=batch), requests, strict=True):
        tokens = (request.context + request.continuation)[-49:]
        logs = log_chances(model, tokens[:-1])
        start = len(tokens) - len(request.continuation)
        expected = sum(logs[place - 1, tokens[place]].item() for place in range(start, len(tokens)))
        assert found.log_likelihood == pytest.approx(expected, rel=1e-6)
        greedy = all(int(logs[place - 1].argmax()) == tokens[place] for place in range(start, len(tokens)))
        assert found.is_greedy == greedy


def test_a_greedy_continuation_is_known_as_one():
    model = make_model(3.0)
    start, tokens = prompt(5), prompt(5)
    for _ in range(4):
        tokens.append(int(log_chances(model, tokens)[-1].argmax()))
    assert score(model, [Scored(start, tokens[5:])])[0].is_greedy
    assert not score(model, [Scored(start, [*tokens[5:-1], (tokens[-1] + 1) % 4])])[0].is_greedy


def exact_bound(model, tokens, first):
    """Mean over all masks, with l masks of c uniform in l, of the weighted loss; stretch by stretch."""
    block, total = min(model.shape.block, len(tokens)), 0.0
    for begin in range(first // block * block, len(tokens), block):
        places = range(max(begin, first), min(begin + block, len(tokens)))
        count = len(places)
        for size in range(1, count + 1):
            subsets = list(itertools.combinations(places, size))
            for subset in subsets:
                read = [MASK_ID if place in subset else token for place, token in enumerate(tokens[: places.stop])]
                read += [MASK_ID] * (begin + block - places.stop)
                logs = log_chances(model, read)
                loss = -sum(logs[place, tokens[place]].item() for place in subset)
                total += loss * (count / size) / len(subsets) / count
    return -total


@pytest.mark.parametrize("block", [1, 4, 48], ids=["blocks of 1", "blocks of 4", "bidirectional"])
def test_bounds_are_the_mean_over_masks(block):
    model = make_model(2.0, block=block, in_place=True)
    tokens, first = prompt(11, 5), 6
    request = Scored(tokens[:first], tokens[first:])
    scores = [score(model, [request], draws=100, seed=seed)[0] for seed in range(12)]
    found = [one.log_likelihood for one in scores]
    expected = exact_bound(model, tokens, first)
    if block == 1:
        expected = sum(
            log_chances(model, [*tokens[:place], MASK_ID])[place, tokens[place]].item() for place in range(first, 11)
        )
        assert found == pytest.approx([expected] * 12, rel=1e-6)
        assert {one.variance for one in scores} == {0.0}
    else:
        error = np.std(found) / math.sqrt(len(found))
        assert 0 < error < 0.05 * abs(expected)
        assert abs(np.mean(found) - expected) < 4 * error
        # Twelve runs know their own spread to about a fifth.
        assert 0.5 < math.sqrt(np.mean([one.variance for one in scores])) / np.std(found, ddof=1) < 2


@pytest.mark.parametrize(
    "context, continuation, words",
    [([], [1], "request 0 has an empty"), ([1], [], "request 0 has an empty"), ([1], [2] * 49, "49 tokens to score")],
)
def test_what_cannot_be_scored(context, continuation, words):
    with pytest.raises(ValueError, match=words):
        score(make_model(), [Scored(context, continuation)])


def test_perplexity_of_a_dataset_is_the_mean_over_its_samples(checkpoint, tmp_path, tokenizer_path):
    model = load(checkpoint)
    documents = [[token for token in prompt(count, count) if token != 3] for count in (70, 200, 33, 90)]
    data = write_dataset(tmp_path / "data", tokenizer_path, 2, train=documents, validation=documents)
    found = list(dataset_perplexity(model, data, "validation", samples=None, batch=3, draws=1))[-1]
    samples = PackedStream(data, "validation", 0, 48).samples(np.arange(found.samples))
    logs = [log_chances(model, row[:-1]) for row in samples.tolist()]
    losses = [-log[range(48), row[1:]].mean().item() for log, row in zip(logs, samples.tolist(), strict=True)]
    assert found.nats_per_token == pytest.approx(np.mean(losses), rel=1e-6)
    assert (found.tokens, found.is_bound, found.standard_error) == (48 * len(samples), False, 0.0)
    length = sum(len(model.tokenizer.piece_bytes(token)) for row in samples.tolist() for token in row[1:])
    assert found.bits_per_byte == pytest.approx(np.sum(losses) * 48 / math.log(2) / length, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.nats_per_token))


def test_another_tokenizer_is_refused(checkpoint, tmp_path, texts):
    from card_scale.corpus.tokenizer_training import train_tokenizer

    other = tmp_path / "tokenizer.model"
    other.write_bytes(train_tokenizer(texts[:40], 390))
    data = write_dataset(tmp_path / "data", other, 2, train=[[5] * 99], validation=[[5] * 99])
    with pytest.raises(DataError, match="build it with the checkpoint's tokenizer"):
        list(dataset_perplexity(load(checkpoint), data, "validation", samples=None, batch=1, draws=1))
