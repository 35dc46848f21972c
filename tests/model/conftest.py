"""A job of one rank in the test process, for tests of the real model."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from card_scale.config import ModelConfig
from card_scale.distributed import process_groups
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.model.gpt import GPT
from card_scale.model.initialization import initial_weight
from card_scale.model.recomputation import Recompute
from card_scale.model.vocabulary import Vocabulary
from card_scale.model.weights import logical_weights
from card_scale.objectives.attention import AttentionKind, Causal

VOCABULARY = Vocabulary(size=250, mask_id=4)
ONE_RANK = ParallelDims(1, 1, 1)


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """Process groups of one rank, over gloo."""
    store = tmp_path_factory.mktemp("rendezvous") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    process_groups.initialize(ONE_RANK, 60)
    yield
    process_groups.destroy()


@pytest.fixture
def build(one_rank):  # noqa: ARG001 - the groups must stand
    """Function that builds the whole model on this rank; further keywords are keys of the group ``model``.

    Norm weights are moved away from one, where a missing norm weight would not show.
    """

    def build_model(
        attention: AttentionKind = Causal(),  # noqa: B008 - immutable
        vocabulary: Vocabulary = VOCABULARY,
        recompute: Recompute = "none",
        compile_layers: bool = False,
        **model,
    ) -> GPT:
        sizes = dataclasses.replace(ModelConfig(layers=2, hidden=24, heads=3, ffn=40, length=12), **model)
        chunk = GPT(sizes, vocabulary, attention, ONE_RANK, recompute=recompute, compile_layers=compile_layers)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter, where in logical_weights([chunk]):
                value = initial_weight(where.name, where.global_shape, 1, sizes.layers)
                if value.dim() == 1:
                    value += 0.3 * torch.randn(value.shape, generator=generator)
                # Five times the deviation: attention that looks somewhere, logits that say something.
                parameter.copy_(value if value.dim() == 1 else 5 * value)
        return chunk

    return build_model
