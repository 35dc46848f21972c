"""Every backend of every kind of attention, against a float64 loop over the queries."""

import math
import pkgutil
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.config import ModelConfig
from card_scale.errors import ConfigurationError
from card_scale.model.attention.base import Attention
from card_scale.model.attention.by_layer import LayerAttention
from card_scale.model.attention.dense import DenseAttention
from card_scale.model.attention.flex import FlexAttention
from card_scale.model.attention.selection import create_attention, resolve_backend
from card_scale.model.attention.split import CHUNK_QUERIES, SplitAttention
from card_scale.objectives.attention import (
    AttentionKind,
    Bidirectional,
    BlockCausal,
    BlockDiffusion,
    Causal,
    StrictBlockCausal,
)
from tests.objectives import oracles

# FlexAttention says, uncompiled, that it is slow.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU = torch.device("cpu")
CAUSAL, BIDIRECTIONAL = Causal(), Bidirectional()


def block_diffusion(block):
    return BlockDiffusion(block)


def create(kind: AttentionKind, backend: str) -> Attention:
    """Like create_attention, but FlexAttention is not compiled, which a CPU can run forward."""
    return FlexAttention(kind, compiled=False) if backend == "flex" else create_attention(kind, backend, CPU)


def states(positions, batch=2, heads=2, size=4, seed=0, dtype=torch.float64):
    """Return query, key and value [positions, B, heads, head size] that take gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, positions, batch, heads, size)
    return (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()


def sees(kind, query, key, positions):
    if kind.name == "block_diffusion":
        return oracles.sees(query, key, positions // 2, kind.block)
    if kind.name == "strict_block_causal":
        return oracles.two_stream_sight(positions // 2, kind.block, kind.single_heads)[query][key]
    if kind.name == "block_causal":
        return oracles.query_sight(positions, kind.block, kind.single_heads)[query][key]
    return kind.name == "bidirectional" or key <= query


def by_hand(kind, query, key, value):
    """Return [positions, B, heads * head size], one query at a time."""
    positions, *_, size = query.shape
    rows = []
    for place in range(positions):
        visible = [other for other in range(positions) if sees(kind, place, other, positions)]
        scores = (key[visible] * query[place]).sum(-1) / math.sqrt(size)
        shares = torch.exp(scores - scores.max())
        shares = shares / shares.sum(0)
        rows.append((shares[..., None] * value[visible]).sum(0).flatten(1))
    return torch.stack(rows)


def check(kind, attention, positions, **sizes):
    """Output and, where there is a backward pass, gradients of both functions against the loop's."""
    expected_states = states(positions, **sizes)
    expected = by_hand(kind, *expected_states)
    predictions = positions // kind.inputs_per_token
    attention.prepare(positions, CPU)
    assert kind.predictions(positions) == predictions
    for function, rows in ((attention.everywhere, positions), (attention.for_predictions, predictions)):
        found_states = states(positions, **sizes)
        found = function(*(found_states.detach() if attention.backend == "flex" else found_states))
        torch.testing.assert_close(found, expected[:rows], rtol=1e-9, atol=1e-9)
        if attention.backend != "flex":
            direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            (gradient,) = torch.autograd.grad(expected[:rows], expected_states, direction, retain_graph=True)
            (found_gradient,) = torch.autograd.grad(found, found_states, direction)
            torch.testing.assert_close(found_gradient, gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [CAUSAL, BIDIRECTIONAL])
@pytest.mark.parametrize("backend", ["sdpa", "flex"])
@pytest.mark.parametrize("positions", [1, 2, 13, 40])
def test_causal_and_bidirectional(kind, backend, positions):
    check(kind, create(kind, backend), positions)


@given(
    blocks=st.integers(1, 6),
    block=st.integers(1, 6),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    size=st.sampled_from([1, 2, 5, 8]),
    backend=st.sampled_from(["flex", "split", "dense"]),
    blocks_per_chunk=st.integers(1, 4),
)
@settings(max_examples=40)
def test_block_diffusion(blocks, block, batch, heads, size, backend, blocks_per_chunk):
    kind = block_diffusion(block)
    attention = create(kind, backend)
    if backend == "split":
        # Small sizes would all be one chunk.
        attention.chunk = block * blocks_per_chunk
    check(kind, attention, 2 * blocks * block, batch=batch, heads=heads, size=size)


@given(
    blocks=st.integers(1, 5),
    block=st.integers(1, 5),
    single_heads=st.booleans(),
    streams=st.sampled_from([1, 2]),
    grouped=st.booleans(),
    backend=st.sampled_from(["flex", "split", "dense", "sdpa"]),
    blocks_per_chunk=st.integers(1, 4),
)
@settings(max_examples=60)
def test_two_streams_and_the_queries_behind_them(
    blocks, block, single_heads, streams, grouped, backend, blocks_per_chunk
):
    block = 1 if backend == "sdpa" else block
    kind = (BlockCausal if streams == 1 and block > 1 else StrictBlockCausal)(block, single_heads)
    attention = create(kind, backend)
    if backend == "split":
        attention.chunk = block * blocks_per_chunk
    check(kind, attention, kind.inputs_per_token * blocks * block, heads=2 if not grouped else 1)


@pytest.mark.parametrize("length, block", [(320, 16), (256, 1), (240, 48), (200, 200)])
@pytest.mark.parametrize("single_heads", [False, True])
def test_two_streams_at_every_chunk_boundary(length, block, single_heads):
    kind = StrictBlockCausal(block, single_heads)
    given = states(2 * length, batch=1, size=2).detach()
    dense = create(kind, "dense")
    dense.prepare(2 * length, CPU)
    for backend in ["split", "flex"] + (["sdpa"] if block == 1 else []):
        attention = create(kind, backend)
        attention.prepare(2 * length, CPU)
        torch.testing.assert_close(attention.everywhere(*given), dense.everywhere(*given), rtol=1e-10, atol=1e-10)
        first = attention.for_predictions(*given)
        torch.testing.assert_close(first, dense.everywhere(*given)[:length], rtol=1e-10, atol=1e-10)


@dataclass(frozen=True)
class Strict(AttentionKind):
    """Each position sees those before it, the first one nobody."""

    name = "strict"

    def visible(self, query, key, positions):  # noqa: ARG002 - the same at every length
        return key < query

    def pairs_per_token(self, length):
        return length / 2


@pytest.mark.parametrize("backend", ["dense", "flex"])
def test_a_row_that_sees_nothing_is_zero(backend):
    attention = create(Strict(), backend)
    attention.prepare(5, CPU)
    given = states(5)
    found = attention.everywhere(*(given.detach() if backend == "flex" else given))
    assert (found[0] == 0).all()
    assert found[1:].abs().min() > 0
    if backend == "dense":
        found.sum().backward()
        assert given.grad.isfinite().all()
        assert (given.grad[0, 0] == 0).all()


# (L, block): chunks of several blocks, their last one shorter, of a single block or even; one block a chunk, at most
# 128 or more; all of L.
CHUNKS = [(320, 16), (144, 16), (256, 4), (130, 1), (240, 48), (288, 96), (384, 192), (256, 128), (200, 200), (12, 3)]


@pytest.mark.parametrize("length, block", CHUNKS)
def test_the_backends_agree_at_every_chunk_boundary(length, block):
    """The dense mask is the oracle here: it is the definition's, tested by itself."""
    kind = block_diffusion(block)
    dense, split, flex = (create(kind, backend) for backend in ("dense", "split", "flex"))
    assert split.chunk % block == 0
    assert split.chunk == block or split.chunk <= CHUNK_QUERIES
    results = []
    for attention in (dense, split):
        attention.prepare(2 * length, CPU)
        attended = attention.everywhere(*(given := states(2 * length, batch=1, size=2)))
        direction = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        results.append((attended, *torch.autograd.grad(attended, given, direction)))
        first = attention.for_predictions(*(given := states(2 * length, batch=1, size=2)))
        torch.testing.assert_close(first, attended[:length], rtol=1e-12, atol=1e-12)
        results[-1] += torch.autograd.grad(first, given, direction[:length])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    flex.prepare(2 * length, CPU)
    given, expected = states(2 * length, batch=1, size=2).detach(), results[0][0]
    torch.testing.assert_close(flex.everywhere(*given), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(flex.for_predictions(*given), expected[:length], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("blocks, block, blocks_per_chunk", [(3, 1, 2), (2, 2, 1), (3, 2, 2)])
def test_the_split_form_has_the_numerical_gradient(blocks, block, blocks_per_chunk):
    attention = SplitAttention(block_diffusion(block))
    attention.chunk = block * blocks_per_chunk
    positions = 2 * blocks * block
    attention.prepare(positions, CPU)
    inputs = tuple(part.detach().requires_grad_() for part in states(positions, batch=1, heads=1, size=2))
    assert torch.autograd.gradcheck(attention.everywhere, inputs)
    assert torch.autograd.gradcheck(attention.for_predictions, inputs)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("backend", ["flex", "split", "dense"])
def test_other_types(backend, dtype, tolerance):
    kind, length = block_diffusion(4), 24
    attention = create(kind, backend)
    attention.prepare(2 * length, CPU)
    given = states(2 * length, dtype=dtype).detach()
    found, expected = attention.everywhere(*given), by_hand(kind, *given.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "backend, maker, made_first",
    [
        ("dense", "card_scale.objectives.attention.BlockDiffusion.visible", 1),
        ("split", "card_scale.objectives.attention.BlockDiffusion.visible", 2),
        ("flex", "torch.nn.attention.flex_attention.create_block_mask", 2),
    ],
)
def test_masks_are_made_once(backend, maker, made_first, monkeypatch):
    attention = create(block_diffusion(4), backend)
    with monkeypatch.context() as patch:
        made = count_calls(patch, maker)
        attention.prepare(24, CPU)
        attention.prepare(24, CPU)
        assert len(made) == made_first
    # A pass makes none, FlexAttention's mask function apart, which every uncompiled pass evaluates.
    with monkeypatch.context() as patch:
        made = count_calls(patch, maker)
        attention.prepare(24, CPU)
        attention.everywhere(*states(24).detach())
        attention.for_predictions(*states(24).detach())
        assert not made


def count_calls(patch, name):
    """Return a list that grows by one with each call of the function ``name``."""
    calls = []
    original = pkgutil.resolve_name(name)
    patch.setattr(name, lambda *given, **named: calls.append(name) or original(*given, **named))
    return calls


def test_chunks_of_one_block_need_no_mask():
    attention = create(block_diffusion(70), "split")
    attention.prepare(280, CPU)
    assert [chunk.mask for chunk in attention.chunks] == [None] * 4
    assert [sum(keys.stop - keys.start for keys in chunk.keys) for chunk in attention.chunks] == [70, 140, 70, 140]


def test_a_dense_mask_follows_the_length():
    kind = block_diffusion(2)
    attention = DenseAttention(kind)
    for positions in (8, 16, 8):
        check(kind, attention, positions)


def test_flex_masks_of_several_lengths_stand_side_by_side():
    kind = block_diffusion(2)
    attention = FlexAttention(kind, compiled=False)
    attention.prepare(8, CPU)
    attention.prepare(16, CPU)
    for positions in (8, 16, 8):
        check(kind, attention, positions)


def tiles(attention, queries, positions):
    """Return (computed 128 x 128 tiles, those of them that are masked in part) of a block mask."""
    mask = attention.block_masks[queries, positions, CPU]
    partial, full = mask.kv_num_blocks.sum().item(), mask.full_kv_num_blocks.sum().item()
    return partial + full, partial


# Computed tiles over those of causal attention, as the paper's cost is estimated: 2 + 2 / (L / 128 + 1).
@pytest.mark.parametrize("length, block, ratio", [(512, 4, 2.40), (1024, 16, 2.22), (2048, 64, 2.12), (512, 128, 2.00)])
def test_flex_computes_the_tiles_that_the_mask_leaves(length, block, ratio):
    causal, blocks = FlexAttention(CAUSAL, compiled=False), FlexAttention(block_diffusion(block), compiled=False)
    causal.prepare(length, CPU)
    blocks.prepare(2 * length, CPU)
    of_causal, _ = tiles(causal, length, length)
    computed, partial = tiles(blocks, 2 * length, 2 * length)
    number = length // 128
    assert of_causal == number * (number + 1) // 2
    assert round(computed / of_causal, 2) == ratio
    assert (partial == 0) == (block == 128)
    # The last layer needs the noisy half's: its own diagonal and the clean blocks before.
    of_noisy, _ = tiles(blocks, length, 2 * length)
    assert of_noisy == number + of_causal - (number if block == 128 else 0)


@pytest.mark.parametrize(
    "kind, device, backend",
    [
        (CAUSAL, "cpu", "sdpa"),
        (BIDIRECTIONAL, "cpu", "sdpa"),
        (block_diffusion(4), "cpu", "split"),
        (StrictBlockCausal(), "cpu", "sdpa"),
        (StrictBlockCausal(), "cuda", "sdpa"),
        (StrictBlockCausal(2), "cpu", "split"),
        (StrictBlockCausal(2), "cuda", "flex"),
        (BlockCausal(2), "cpu", "split"),
        (CAUSAL, "cuda", "sdpa"),
        (BIDIRECTIONAL, "cuda", "sdpa"),
        (block_diffusion(4), "cuda", "flex"),
    ],
)
def test_the_automatic_choice(kind, device, backend):
    attention = create_attention(kind, "auto", torch.device(device))
    assert attention.backend == backend
    assert type(attention) is type(create_attention(kind, backend, torch.device(device)))
    assert attention.kind == kind
    assert type(attention) is resolve_backend(kind, "auto", device)


@pytest.mark.parametrize(
    "kind, backend, device, message",
    [
        (
            CAUSAL,
            "flex",
            "cpu",
            "where it has no backward pass; valid here: auto, sdpa, dense$",
        ),
        (block_diffusion(4), "flex", "cpu", "no backward pass; valid here: auto, split, dense$"),
        (block_diffusion(4), "sdpa", "cpu", "block diffusion attention runs on a cpu; valid here: auto, split, dense$"),
        (block_diffusion(4), "sdpa", "cuda", "runs on a cuda; valid here: auto, flex, split, dense$"),
        (CAUSAL, "split", "cuda", "causal attention runs on a cuda; valid here: auto, sdpa, flex, dense$"),
        (BIDIRECTIONAL, "split", "cpu", "runs on a cpu; valid here: auto, sdpa, dense$"),
    ],
)
def test_backends_that_do_not_exist_are_refused(kind, backend, device, message):
    with pytest.raises(ConfigurationError, match=rf"model\.attention_backend is {backend}, but .*{message}"):
        create_attention(kind, backend, torch.device(device))


def test_its_functions_are_the_same_objects_in_every_pass():
    """torch.compile takes another object for another function."""
    attention = create_attention(block_diffusion(4), "split", CPU)
    assert attention.everywhere is attention.everywhere
    assert attention.for_predictions is attention.for_predictions


@dataclass(frozen=True)
class SelfOnly(Causal):
    """A kind from another package, which goes by the name of the one that it is derived from."""

    def visible(self, query, key, positions):  # noqa: ARG002 - the same at every length
        return key == query


def test_a_kind_is_told_by_its_class_and_not_by_its_name():
    """The fused kernel would compute its parent."""
    kind = SelfOnly()
    assert kind.name == "causal"
    attention = create_attention(kind, "auto", CPU)
    assert type(attention) is DenseAttention
    attention.prepare(6, CPU)
    query, key, value = states(6)
    torch.testing.assert_close(attention.everywhere(query, key, value), value.flatten(2))
    with pytest.raises(ConfigurationError, match="sdpa"):
        create_attention(kind, "sdpa", CPU)


def test_a_run_says_which_kernel_computes_its_attention():
    sizes = ModelConfig(layers=4, hidden=32, heads=4, kv_heads=2, ffn=40, length=12)

    def said(kind, backend="auto", tensor_parallel=1):
        return LayerAttention(kind, sizes.layers, backend, CPU).describe(sizes, tensor_parallel, torch.float32)

    assert said(Causal()) == "sdpa (flash attention), 4 heads of 8 a rank"
    assert said(Bidirectional(), tensor_parallel=2) == "sdpa (flash attention), 2 heads of 8 a rank"
    assert said(BlockDiffusion(4)) == "split, 4 heads of 8 a rank"
    assert said(BlockDiffusion(4), "dense") == "dense, 4 heads of 8 a rank"
    assert said(StrictBlockCausal(4)).startswith("split, behind the wide layers split, 4 heads")
