"""The inference model against a float64 loop, against the model that is trained, and with its cache against itself."""

import pytest
import torch

from tests.generation.conftest import make_model, prompt, whole_model_weights
from tests.model import reference_gpt

SIZES = {
    "causal": {},
    "grouped": {"kv_heads": 1, "tied": True, "norm_epsilon": 1e-2},
    "two groups": {"hidden": 32, "heads": 4, "kv_heads": 2, "rotary_base": 1e4, "layers": 3},
    "bidirectional": {"block": 48},
    "blocks of 4": {"block": 4},
}


@pytest.mark.parametrize("name", SIZES)
def test_logits_equal_the_loop(name):
    model = make_model(**SIZES[name])
    shape = model.shape
    tokens = torch.tensor([prompt(11, 1), prompt(11, 2)])
    blocks = torch.arange(11) // shape.block
    expected = reference_gpt.logits(
        whole_model_weights(model),
        tokens,
        shape.layers,
        shape.heads,
        blocks[None, :] <= blocks[:, None],
        kv_heads=shape.kv_heads,
        rotary_base=shape.rotary_base,
        epsilon=shape.norm_epsilon,
    )[..., : shape.vocabulary]
    expected[..., shape.mask_id] = -torch.inf
    found = model.logits(tokens)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
