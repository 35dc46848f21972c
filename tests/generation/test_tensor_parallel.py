"""Two ranks decode what one does."""

import torch
from torch.distributed.device_mesh import init_device_mesh

from card_scale.errors import ConfigurationError
from card_scale.generation import generate
from card_scale.generation.tensor_parallel import parallelize
from tests.generation.conftest import make_model, prompt
from tests.layouts.processes import run_ranks

PROMPTS = [prompt(5, 1), prompt(11, 2), []]
MODELS = ({"kv_heads": 4}, {"kv_heads": 2, "tied": True}, {"kv_heads": 2, "two_streams": True})
OPTIONS = (
    {"method": "ar"},
    {"method": "self_verified", "drafts": 3},
    {"method": "self_verified", "temperature": 1.0},
    {"method": "card", "tau": 0.2},
)
OF_TWO_STREAMS = ({"method": "armd_strided"}, {"method": "armd_strided", "strides": 5, "temperature": 1.0})


def results(split: bool) -> list:
    """Logits and generations of each model; on two ranks where split."""
    torch.set_num_threads(1)
    found = []
    for sizes in MODELS:
        model = make_model(2.0, hidden=32, heads=4, **sizes)
        whole = sum(parameter.numel() for parameter in model.parameters())
        if split:
            torch.distributed.is_initialized() or torch.distributed.init_process_group("gloo")
            parallelize(model, init_device_mesh("cpu", (2,)))
            held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
            assert held < 0.75 * whole
        found.append(model.logits(torch.tensor([prompt(20, 3)])))
        for options in OF_TWO_STREAMS if model.shape.two_streams else OPTIONS:
            found.append([one.tokens for one in generate(model, PROMPTS, new_tokens=25, **options)])
    try:
        model = make_model(kv_heads=1)
        if split:
            parallelize(model, init_device_mesh("cpu", (2,)))
    except ConfigurationError as error:
        found.append(str(error))
    return found


def test_two_ranks_decode_what_one_does():
    expected = results(split=False)
    for found in run_ranks(results, 2, True):
        assert found.pop() == "2 ranks do not divide model.kv_heads 1"
        for one, other in zip(found, expected, strict=True):
            if isinstance(one, list):
                assert one == other
            else:
                torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
