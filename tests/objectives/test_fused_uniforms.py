"""The Triton kernel, interpreted on a CPU, draws the bits of the tensor operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.objectives import noise

pytest.importorskip("triton", reason="make test installs it")
from card_scale.objectives import fused_uniforms

LONGEST = 8 * fused_uniforms.COUNTERS + 5
"""Two programs and a part of a third."""


@given(
    seed=st.integers(0, 2**62),
    stream=st.sampled_from(list(noise.Stream)),
    rows=st.lists(st.tuples(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40)), max_size=3),
    length=st.integers(0, 9)
    | st.sampled_from([4 * fused_uniforms.COUNTERS + extra for extra in (-1, 0, 1)] + [LONGEST]),
)
@settings(max_examples=25, deadline=None)
def test_the_same_bits(seed, stream, rows, length):
    ids, epochs = (torch.tensor([row[part] for row in rows], dtype=torch.int64) for part in (0, 1))
    drawn = fused_uniforms.uniforms(noise.stream_key(seed, stream), ids, epochs, length)
    assert torch.equal(drawn, noise.uniforms(seed, ids, epochs, length, stream))


def test_rows_that_are_not_contiguous():
    pairs = torch.arange(12).reshape(6, 2)
    drawn = fused_uniforms.uniforms(noise.stream_key(1, 0), pairs[:, 0], pairs[:, 1], 7)
    assert torch.equal(drawn, noise.uniforms(1, pairs[:, 0], pairs[:, 1], 7, 0))
