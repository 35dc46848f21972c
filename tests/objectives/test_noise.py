"""The counter-based noise: the published generator, and independence of everything but its arguments."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.objectives.noise import Stream, philox4x32, stream_key, uniforms
from tests.objectives import oracles

IDS = st.integers(min_value=0, max_value=2**63 - 1)
WORD = st.integers(min_value=0, max_value=2**32 - 1)


def draw(seed, ids, epochs, length, stream=Stream.MASK):
    return uniforms(seed, torch.tensor(ids), torch.tensor(epochs), length, stream)


@pytest.mark.parametrize(
    "counter, key, expected",
    [  # Random123, tests/kat_vectors, the lines "philox4x32 10"
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_published_vectors(counter, key, expected):
    words = tuple(torch.tensor([int(word, 16)]) for word in counter.split())
    output = philox4x32(words, tuple(int(word, 16) for word in key.split()))
    assert [f"{int(word):08x}" for word in output] == expected.split()


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
@settings(max_examples=50, deadline=None)
def test_bijection_equals_integer_arithmetic(counter, key):
    output = philox4x32(tuple(torch.tensor([word]) for word in counter), key)
    assert tuple(int(word) for word in output) == oracles.philox4x32(counter, key)


@given(st.integers(0, 2**64 - 1), IDS, st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_value_is_the_word_of_its_counter(seed, sample, epoch, length):
    key = stream_key(seed, Stream.MASK)
    expected = []
    for position in range(length):
        words = oracles.philox4x32((position // 4, sample % 2**32, sample // 2**32, epoch), key)
        expected.append((words[position % 4] >> 8) / 2**24)
    assert draw(seed, [sample], [epoch], length)[0].tolist() == expected


@given(st.lists(st.tuples(IDS, st.integers(0, 100)), min_size=1, max_size=6), st.integers(1, 40), st.randoms())
@settings(max_examples=30, deadline=None)
def test_rows_do_not_depend_on_the_batch(rows, length, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    together = draw(3, [r[0] for r in shuffled], [r[1] for r in shuffled], length)
    for row, (sample, epoch) in zip(together, shuffled, strict=True):
        assert torch.equal(row, draw(3, [sample], [epoch], length)[0])


@given(st.integers(0, 60), st.integers(0, 60))
@settings(max_examples=30, deadline=None)
def test_longer_continues_shorter(one, other):
    short, long = sorted((one, other))
    assert torch.equal(draw(1, [7, 2**40], [0, 3], long)[:, :short], draw(1, [7, 2**40], [0, 3], short))


def test_every_argument_changes_the_draw():
    base = draw(1, [5], [2], 64, Stream.MASK)
    for other in (
        draw(2, [5], [2], 64, Stream.MASK),
        draw(1, [6], [2], 64, Stream.MASK),
        draw(1, [5 + 2**32], [2], 64, Stream.MASK),
        draw(1, [5], [3], 64, Stream.MASK),
        draw(1, [5], [2], 64, Stream.NOISE_LEVEL),
        draw(1, [5], [2], 64, Stream.EVALUATION),
    ):
        assert (base == other).sum() <= 1


def test_uniform_and_uncorrelated():
    values = uniforms(11, torch.arange(1000), torch.zeros(1000, dtype=torch.int64), 100, Stream.MASK)
    count = values.numel()
    assert values.dtype == torch.float32
    assert values.min() >= 0
    assert values.max() < 1
    # 100 bins, chi-square with 99 degrees of freedom: mean 99, standard deviation 14; six of them.
    observed = torch.histc(values, bins=100, min=0, max=1)
    assert ((observed - count / 100) ** 2 / (count / 100)).sum() < 99 + 6 * math.sqrt(2 * 99)
    centred = values.double() - 0.5
    for shift in (1, 4, 5):
        along_positions = (centred[:, shift:] * centred[:, :-shift]).mean() * 12
        along_samples = (centred[shift:] * centred[:-shift]).mean() * 12
        assert abs(along_positions) < 6 / math.sqrt(count)
        assert abs(along_samples) < 6 / math.sqrt(count)


def test_values_have_24_bits():
    values = draw(0, [1], [0], 4096).double() * 2**24
    assert torch.equal(values, values.round())
    assert (values % 2 == 1).any()


@pytest.mark.parametrize(
    "ids, epochs",
    [
        (torch.tensor([1], dtype=torch.int32), torch.tensor([0])),
        (torch.tensor([1]), torch.tensor([0.0])),
        (torch.tensor(1), torch.tensor([0])),
    ],
)
def test_other_types_and_shapes_are_refused(ids, epochs):
    with pytest.raises(ValueError, match=r"must be int64 of shape \[B\]"):
        uniforms(0, ids, epochs, 4, Stream.MASK)


def test_negative_length_is_refused():
    with pytest.raises(ValueError, match="length"):
        draw(0, [1], [0], -1)
