"""Model FLOPs against a count of every product and published figures; parameter counts against a model's."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.config import ModelConfig
from card_scale.cost.devices import peak_flops, throughput_fields
from card_scale.cost.flops import ModelFlops, flops_per_token
from card_scale.cost.parameters import parameter_counts
from card_scale.objectives import registry
from card_scale.objectives.attention import AttentionKind
from tests.objectives import oracles

H100 = 989.4e12
# 8 of 32 heads for keys and values; head included, input embedding not.
LLAMA3_8B = ModelConfig(layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, length=8192)


def test_parameters_equal_those_of_a_model_that_is_built():
    layers, hidden, ffn, vocabulary = 3, 8, 20, 50
    shapes = [(vocabulary, hidden), (vocabulary, hidden), (hidden,)]
    for _ in range(layers):
        shapes += [(hidden,), (3 * hidden, hidden), (hidden, hidden), (hidden,), (2 * ffn, hidden), (hidden, ffn)]
    built = sum(torch.empty(shape).numel() for shape in shapes)
    sizes = ModelConfig(layers=layers, hidden=hidden, heads=2, ffn=ffn)
    untied = parameter_counts(sizes, vocabulary)
    assert untied.total == built
    tied = parameter_counts(dataclasses.replace(sizes, tie_embeddings=True), vocabulary)
    assert tied.total == built - vocabulary * hidden
    assert tied.multiplied == untied.multiplied == built - vocabulary * hidden - (2 * layers + 1) * hidden


def test_published_sizes():
    paper = ModelConfig(layers=33, hidden=1536, heads=16, ffn=4096, tie_embeddings=True)
    assert parameter_counts(paper, 50368).total == pytest.approx(1.01e9, rel=0.005)
    llama2_7b = ModelConfig(layers=32, hidden=4096, heads=32, ffn=11008)
    assert parameter_counts(llama2_7b, 32000).total == 6_738_415_616
    assert parameter_counts(LLAMA3_8B, 128256).total == 8_030_261_248


def test_llama_8b_throughput_under_both_conventions():
    assert round(parameter_counts(LLAMA3_8B, 128256).multiplied / 1e9, 3) == 7.505
    flops = flops_per_token(LLAMA3_8B, kind_of("ar"), 128256)
    fields = throughput_fields(flops, tokens_per_second=8 * 6667, devices=8, peak=H100)
    assert fields["mfu_causal"] == pytest.approx(0.347, abs=5e-4)
    assert fields["mfu_full"] == pytest.approx(0.390, abs=5e-4)
    # Megatron-Bridge publishes 744 TFLOP/s for 14 451 tokens per second.
    fields = throughput_fields(flops, tokens_per_second=14_451, devices=1, peak=None)
    assert fields == {"tflops_per_device": pytest.approx(743.8, abs=0.1)}


def kind_of(name, block=1) -> AttentionKind:
    """Return the kind of attention of an objective."""
    return registry.create(name, **({"block": block} if name == "bd3lm" else {})).attention


def flops_of(name, *, vocabulary, layers, hidden, ffn, length, block=1, heads=1, kv_heads=None) -> ModelFlops:
    model = ModelConfig(layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, ffn=ffn, length=length)
    return flops_per_token(model, kind_of(name, block), vocabulary)


def sees(name, query, key, length, block):
    if name == "bd3lm":
        return oracles.sees(query, key, length, block)
    return name == "mdlm" or key <= query


def products(name, *, layers, hidden, ffn, length, block, vocabulary, key_value_width=None):
    """Return the forward FLOPs of one sample, matrix product by matrix product: (of visible pairs, of all pairs).

    A product of [m, k] and [k, n] is 2 m n k. Only what the losses need is computed.
    """
    positions = 2 * length if name == "bd3lm" else length
    visible = whole = 0
    for layer in range(layers):
        asked = length if layer == layers - 1 else positions
        matrices = [
            (asked, hidden, hidden),  # queries
            (positions, hidden, key_value_width or hidden),  # keys
            (positions, hidden, key_value_width or hidden),  # values
            (asked, hidden, hidden),  # projection
            (asked, hidden, 2 * ffn),  # gate and factor
            (asked, ffn, hidden),
        ]
        dense = sum(2 * m * n * k for m, k, n in matrices)
        pairs = sum(sees(name, query, key, length, block) for query in range(asked) for key in range(positions))
        # Each pair takes a product of two rows of the keys' width, and adds a row of that width to the output.
        visible += dense + 2 * (2 * hidden) * pairs
        whole += dense + 2 * (2 * hidden) * asked * positions
    head = 2 * length * hidden * vocabulary
    return visible + head, whole + head


@given(
    name=st.sampled_from(["mdlm", "bd3lm"]),
    layers=st.integers(1, 3),
    key_value_heads=st.integers(1, 3),
    group=st.integers(1, 2),
    head_size=st.sampled_from([2, 4]),
    ffn=st.integers(1, 20),
    blocks=st.integers(1, 4),
    block=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_flops_are_those_of_every_product(name, layers, key_value_heads, group, head_size, ffn, blocks, block):
    heads = key_value_heads * group
    sizes = {"layers": layers, "hidden": heads * head_size, "ffn": ffn, "length": blocks * block, "block": block}
    visible, whole = products(name, **sizes, vocabulary=64, key_value_width=key_value_heads * head_size)
    flops = flops_of(name, **sizes, heads=heads, kv_heads=key_value_heads, vocabulary=64)
    # The backward pass has two products for each of the forward pass's.
    assert flops.causal * blocks * block == pytest.approx(3 * visible, rel=1e-12)
    assert flops.full * blocks * block == pytest.approx(3 * whole, rel=1e-12)


@pytest.mark.parametrize("name", ["card", "ar"])
def test_flops_of_causal_objectives(name):
    sizes = {"layers": 3, "hidden": 8, "ffn": 20, "length": 12, "block": 1}
    visible, whole = products("ar", **sizes, vocabulary=64)
    flops = flops_of(name, **sizes, vocabulary=64)
    assert flops.full * 12 == pytest.approx(3 * whole, rel=1e-12)
    # By convention half of the square, without half of its diagonal.
    assert flops.causal * 12 == pytest.approx(3 * (visible - 3 * 2 * 2 * 8 * 12 / 2), rel=1e-12)


GPT_124M = {"layers": 12, "hidden": 768, "ffn": 2048, "vocabulary": 50368}
CARD_1B = {"layers": 33, "hidden": 1536, "ffn": 4096, "vocabulary": 50368}


def ratios(sizes, length, block):
    """Return (MDLM/AR, BD3-LM/AR, BD3-LM/AR if its last layer took all 2L positions too)."""
    ar, mdlm, blocks = (flops_of(name, **sizes, length=length, block=block).causal for name in ("ar", "mdlm", "bd3lm"))
    hidden, ffn = sizes["hidden"], sizes["ffn"]
    # Of the last layer's clean half: queries, projection, feed-forward network; and half of its pairs.
    saved = 6 * (2 * hidden**2 + 3 * hidden * ffn) + 12 * hidden * (length + block) / 2
    return mdlm / ar, blocks / ar, (blocks + saved) / ar


@pytest.mark.parametrize(
    "sizes, length, mdlm, blocks",
    [
        (GPT_124M, 1024, 1.07, 1.71),
        (GPT_124M, 4096, 1.23, 1.76),
        (CARD_1B, 1024, 1.05, 1.93),
        (CARD_1B, 2048, 1.09, 1.93),
        (CARD_1B, 8192, 1.29, 1.95),
    ],
)
def test_the_ratios_of_the_reference_table(sizes, length, mdlm, blocks):
    """The table's BD3-LM takes all 2L positions through every layer; ours saves what the last need not compute."""
    for block in (1, 4, 16):
        of_mdlm, of_blocks, of_all_positions = ratios(sizes, length, block)
        assert round(of_mdlm, 2) == mdlm
        assert round(of_all_positions, 2) == blocks
        assert 0.4 / sizes["layers"] < of_all_positions - of_blocks < 1 / sizes["layers"]


@pytest.mark.parametrize("length, grouped", [(2048, 1.93), (8192, 1.94)])
def test_the_ratio_of_an_8b_model(length, grouped):
    """In the same table, for a model with grouped keys and values; ours, with all of them, has more dense work."""
    sizes = {"layers": 32, "hidden": 4096, "ffn": 14336, "vocabulary": 128256}
    assert grouped - 0.005 < ratios(sizes, length, 4)[2] < grouped + 0.015


def test_the_limits_of_block_diffusion():
    sizes = {"layers": 4, "hidden": 32, "ffn": 64, "length": 16}
    smallest, largest = (flops_of("bd3lm", **sizes, vocabulary=64, block=block) for block in (1, 16))
    # The larger the block, the more it sees of itself; the full square has no blocks.
    assert largest.causal - smallest.causal == 12 * 32 * 3.5 * 15
    assert largest.full == smallest.full > largest.causal
    # Tying does not change the count.
    tied = ModelConfig(heads=1, tie_embeddings=True, **sizes)
    assert flops_per_token(tied, kind_of("bd3lm", 16), 64) == largest


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("cpu", None),
    ],
)
def test_peaks(name, peak):
    assert peak_flops(name) == peak
