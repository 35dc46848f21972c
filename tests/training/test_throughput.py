"""Model FLOPs against published throughput figures, and parameter counts against a Megatron-like model."""

import pytest
import torch

from card_scale.training.throughput import flops_per_token, parameter_counts, peak_flops, throughput_fields

H100 = 989.4e12
# Llama-3 8B: grouped-query attention with 8 of 32 heads, hence N_mm written out; head included, input embedding not.
LLAMA_8B = {"layers": 32, "hidden": 4096, "length": 8192}
LLAMA_8B_MULTIPLIED = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336) + 128256 * 4096


def test_parameters_equal_those_of_a_model_that_is_built():
    layers, hidden, ffn, vocabulary = 3, 8, 20, 50
    shapes = [(vocabulary, hidden), (vocabulary, hidden), (hidden,)]
    for _ in range(layers):
        shapes += [(hidden,), (3 * hidden, hidden), (hidden, hidden), (hidden,), (2 * ffn, hidden), (hidden, ffn)]
    built = sum(torch.empty(shape).numel() for shape in shapes)
    untied = parameter_counts(layers=layers, hidden=hidden, ffn=ffn, vocabulary=vocabulary, tied=False)
    assert untied.total == built
    tied = parameter_counts(layers=layers, hidden=hidden, ffn=ffn, vocabulary=vocabulary, tied=True)
    assert tied.total == built - vocabulary * hidden
    assert tied.multiplied == untied.multiplied == built - vocabulary * hidden - (2 * layers + 1) * hidden


def test_published_sizes():
    paper = parameter_counts(layers=33, hidden=1536, ffn=4096, vocabulary=50368, tied=True)
    assert paper.total == pytest.approx(1.01e9, rel=0.005)
    llama2_7b = parameter_counts(layers=32, hidden=4096, ffn=11008, vocabulary=32000, tied=False)
    assert llama2_7b.total == 6_738_415_616


def test_llama_8b_throughput_under_both_conventions():
    assert round(LLAMA_8B_MULTIPLIED / 1e9, 3) == 7.505
    flops = flops_per_token(multiplied=LLAMA_8B_MULTIPLIED, **LLAMA_8B)
    fields = throughput_fields(flops, tokens_per_second=8 * 6667, devices=8, peak=H100)
    assert fields["mfu_causal"] == pytest.approx(0.347, abs=5e-4)
    assert fields["mfu_full"] == pytest.approx(0.390, abs=5e-4)
    # Megatron-Bridge publishes 744 TFLOP/s for 14 451 tokens per second.
    fields = throughput_fields(flops, tokens_per_second=14_451, devices=1, peak=None)
    assert fields == {"tflops_per_device": pytest.approx(743.8, abs=0.1)}


def test_flops_count_pairs_of_a_causal_mask():
    # Attention of one layer and one head of size h over L tokens: scores and values are 2 * 2 * h FLOPs per pair
    # forward, three times that with backward.
    length, hidden = 64, 16
    flops = flops_per_token(multiplied=0, layers=1, hidden=hidden, length=length)
    assert flops.full * length == 3 * 2 * 2 * hidden * length**2
    assert flops.causal * length == 3 * 2 * 2 * hidden * length**2 / 2


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
