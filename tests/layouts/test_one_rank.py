"""The trajectory that all layouts are compared with, against plain float64 torch.

In common are the uniform numbers and the initial weights, tested by themselves; not the layers, the objective, the
loss, the norm, the clip or the optimizer's grouping. Under block diffusion the plain trainer takes all 2L positions
through all layers, under a mask that it makes itself, and lets go of the clean half at the very end; ARMD's two streams
it takes apart where the paper does.
"""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from card_scale.config import Config, ParallelConfig
from card_scale.data.samples import Samples
from card_scale.model.initialization import initial_weight
from card_scale.objectives.noise import Stream, uniforms
from tests.layouts import masked_diffusion_loops
from tests.layouts.parity import TOLERANCE, deadline
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import VOCABULARY, global_batch, run_variants, small_config
from tests.model import reference_gpt
from tests.objectives import oracles

LLAMA = {"kv_heads": 2, "rotary_base": 300.0, "norm_epsilon": 1e-3}

MOVING = {"name": "armd", "permuted": 8, "ar_steps": 0, "permute_steps": 0}

CONFIGS = {
    "card": small_config(),
    "tied": small_config(model={"tie_embeddings": True}),
    "ar": small_config(objective={"name": "ar"}),
    "ablations": small_config(objective={"masking": "uniform", "decay": 0.2, "beta": 2.0, "min_noise": 0.3}),
    "no clipping": small_config(optimizer={"clip": 0.0, "betas": (0.8, 0.9), "weight_decay": 0.5, "eps": 1e-4}),
    "clip above every norm": small_config(optimizer={"clip": 1e3}),
    "another Llama": small_config(model=LLAMA),
    "mdlm": small_config(objective={"name": "mdlm"}),
    "mdlm of another Llama": small_config(objective={"name": "mdlm"}, model=LLAMA | {"kv_heads": 1}),
    "mdlm tied": small_config(objective={"name": "mdlm"}, model={"tie_embeddings": True}),
    "bd3lm": small_config(objective={"name": "bd3lm", "block": 4}),
    "bd3lm dense": small_config(
        objective={"name": "bd3lm", "block": 2}, model={"attention_backend": "dense", "length": 32}
    ),
    "bd3lm of another Llama": small_config(objective={"name": "bd3lm", "block": 4}, model=LLAMA),
    "bd3lm, blocks of one": small_config(objective={"name": "bd3lm", "block": 1}),
    "bd3lm, one block": small_config(objective={"name": "bd3lm", "block": 16}),
    "bd3lm clipped": small_config(objective={"name": "bd3lm", "block": 4, "min_mask": 0.3, "max_mask": 0.8}),
    "bd3lm clipped below": small_config(objective={"name": "bd3lm", "block": 8, "max_mask": 0.5}),
    "bd3lm without weights": small_config(objective={"name": "bd3lm", "block": 8, "min_mask": 0.55}),
    "armd": small_config(objective=MOVING),
    "armd, tokens begin to move": small_config(objective=MOVING | {"ar_steps": 0, "permute_steps": 2}),
    "armd dense": small_config(objective=MOVING, model={"attention_backend": "dense", "length": 20, "layers": 5}),
    "armd in blocks": small_config(objective=MOVING | {"block": 4}),
    "armd in strides": small_config(objective={"name": "armd", "permuted": 0, "strides": (1, 2, 4)}),
}


class Prediction(NamedTuple):
    """What the plain trainer's model reads and is asked for."""

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    normaliser: float
    sees: Tensor | None
    positions: Tensor | None
    queries_see: Tensor | None = None
    """Among the queries, in the second half of the layers."""


def weight_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    hidden, ffn, rows = config.model.hidden, config.model.ffn, VOCABULARY.padded
    key_value_width = config.model.key_value_heads * config.model.head_size
    shapes = {"embedding.weight": (rows, hidden), "final_norm.weight": (hidden,)}
    if not config.model.tie_embeddings:
        shapes["head.weight"] = (rows, hidden)
    for layer in range(config.model.layers):
        shapes |= {
            f"layers.{layer}.attention_norm.weight": (hidden,),
            f"layers.{layer}.attention.linear_qkv.weight": (hidden + 2 * key_value_width, hidden),
            f"layers.{layer}.attention.linear_proj.weight": (hidden, hidden),
            f"layers.{layer}.mlp_norm.weight": (hidden,),
            f"layers.{layer}.mlp.linear_fc1.weight": (2 * ffn, hidden),
            f"layers.{layer}.mlp.linear_fc2.weight": (hidden, ffn),
        }
    return shapes


def prediction(config: Config, batch: Samples) -> Prediction:
    """Return the plain trainer's view of a global batch."""
    if config.objective.name in ("mdlm", "bd3lm"):
        loops = masked_diffusion_loops.training_batch(config, batch)
        return Prediction(
            torch.tensor(loops.inputs),
            batch.tokens[:, :-1],
            torch.tensor(loops.weights, dtype=torch.float64),
            config.train.global_batch * config.model.length,
            torch.tensor(loops.sees),
            torch.tensor(loops.positions),
        )
    if config.objective.name == "armd":
        return in_an_order(config, batch)
    masked, weights = next_token_corruption(config, batch.sample_ids, batch.epochs)
    inputs = torch.where(torch.tensor(masked), VOCABULARY.mask_id, batch.tokens[:, :-1])
    weights = torch.tensor(weights, dtype=torch.float64)
    return Prediction(inputs, batch.tokens[:, 1:], weights, weights.sum().item(), None, None)


def in_an_order(config: Config, batch: Samples) -> Prediction:
    """The plain trainer's view of ARMD: orders made token by token."""
    length, objective, tokens = config.model.length, config.objective, batch.tokens.tolist()
    block, is_strided, orders = objective.block, False, [list(range(length))] * len(tokens)
    if objective.strides != (1,):
        update = torch.tensor([batch.update])
        draw = float(uniforms(config.run.seed, update, torch.zeros_like(update), 1, Stream.STRIDE))
        block = [1, 2, 4][int(draw * 3)]
        is_strided, stretch = block > 1, length // block
        orders = [[stream * stretch + offset for offset in range(stretch) for stream in range(block)]] * len(tokens)
    elif batch.update >= objective.ar_steps:
        ramp = objective.permute_steps - objective.ar_steps
        part = 1.0 if batch.update >= objective.permute_steps else (batch.update - objective.ar_steps) / ramp
        count = 1 + int((objective.permuted - 1) * part)
        draws = [
            uniforms(config.run.seed, batch.sample_ids, batch.epochs, length, stream).tolist()
            for stream in (Stream.ORDER, Stream.ORDER_RANKS)
        ]
        orders = [oracles.order_with_moved_tokens(*of_row, count) for of_row in zip(*draws, strict=True)]
    asked = [[place + 1 for place in order] for order in orders]
    read = [[0, *places[:-1]] for places in asked]
    return Prediction(
        inputs=torch.tensor([[row[place] for place in places] for row, places in zip(tokens, read, strict=True)]),
        targets=torch.tensor([[row[place] for place in places] for row, places in zip(tokens, asked, strict=True)]),
        weights=torch.ones(len(tokens), length, dtype=torch.float64),
        normaliser=len(tokens) * length,
        sees=torch.tensor(oracles.two_stream_sight(length, block, is_strided)),
        positions=torch.tensor([places + before for places, before in zip(asked, read, strict=True)]),
        queries_see=torch.tensor(oracles.query_sight(length, block, is_strided)),
    )


def logits_of(config: Config, weights: dict[str, Tensor], asked: Prediction) -> Tensor:
    """Return the plain trainer's logits [B, L, vocabulary]."""
    model = config.model
    if asked.queries_see is not None:
        return reference_gpt.two_stream_logits(
            weights, asked.inputs, asked.positions, model.layers, model.heads, asked.sees, asked.queries_see
        )
    return reference_gpt.logits(
        weights,
        asked.inputs,
        model.layers,
        model.heads,
        asked.sees,
        asked.positions,
        kv_heads=model.kv_heads,
        rotary_base=model.rotary_base,
        epsilon=model.norm_epsilon,
    )[:, : model.length]


def next_token_corruption(config: Config, sample_ids: Tensor, epochs: Tensor) -> tuple[list, list]:
    """Return (which inputs are masked, weights of the predictions) of each sample."""
    length, objective, seed = config.model.length, config.objective, config.run.seed
    if objective.name == "ar":
        return [[False] * length] * len(sample_ids), [[1.0] * length] * len(sample_ids)
    levels = uniforms(seed, sample_ids, epochs, 1, Stream.NOISE_LEVEL)[:, 0].tolist()
    draws = uniforms(seed, sample_ids, epochs, length - 1, Stream.MASK).tolist()
    masked = []
    for level, draw in zip(levels, draws, strict=True):
        level = float(torch.tensor(objective.min_noise + (objective.max_noise - objective.min_noise) * level))
        if objective.masking == "uniform":
            masked.append([False] + oracles.uniform_mask(level, draw))
        else:
            masked.append([False] + oracles.soft_tail_mask(level, draw, objective.tail_factor))
    return masked, [oracles.context_weights(row, objective.decay, objective.beta) for row in masked]


def float64_trajectory(config: Config) -> tuple[list[float], list[float]]:
    """Return (losses, gradient norms) of ``train.steps`` updates."""
    weights = {
        name: initial_weight(name, shape, config.run.seed, config.model.layers).double().requires_grad_()
        for name, shape in weight_shapes(config).items()
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": [w for w in weights.values() if w.dim() == 2], "weight_decay": config.optimizer.weight_decay},
            {"params": [w for w in weights.values() if w.dim() == 1], "weight_decay": 0.0},
        ],
        lr=config.optimizer.lr,
        betas=config.optimizer.betas,
        eps=config.optimizer.eps,
    )
    allowed = [i for i in range(VOCABULARY.size) if i != VOCABULARY.mask_id]
    losses, norms = [], []
    for step in range(config.train.steps):
        asked = prediction(config, global_batch(config, step))
        logits = logits_of(config, weights, asked)
        token_losses = torch.logsumexp(logits[..., allowed], -1) - logits.gather(-1, asked.targets[..., None])[..., 0]
        loss = (token_losses * asked.weights).sum() / asked.normaliser
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([w.grad.square().sum() for w in weights.values()]).sum().sqrt()
        if config.optimizer.clip and norm > config.optimizer.clip:
            for weight in weights.values():
                weight.grad *= config.optimizer.clip / norm
        optimizer.step()
        losses.append(loss.item())
        norms.append(norm.item())
    return losses, norms


@pytest.fixture(scope="module")
def trajectories():
    """What the library trains on one rank, by name of the configuration."""
    plain = [dataclasses.replace(config, parallel=ParallelConfig(zero=0)) for config in CONFIGS.values()]
    (found,) = run_ranks(run_variants, 1, plain, deadline=deadline(plain))
    return dict(zip(CONFIGS, found, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_one_rank_trains_as_plain_float64_torch(trajectories, name):
    losses, norms = float64_trajectory(CONFIGS[name])
    assert trajectories[name].losses == pytest.approx(losses, rel=TOLERANCE)
    assert trajectories[name].norms == pytest.approx(norms, rel=TOLERANCE)
