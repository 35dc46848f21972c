"""A few updates of a small model on synthetic tokens, as every layout and engine must make them."""

import dataclasses
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from card_scale.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from card_scale.data.samples import Samples
from card_scale.distributed import parallel_dims, process_groups
from card_scale.engine.base import ShardingEngine
from card_scale.engine.build import build_engine
from card_scale.engine.state_keys import WEIGHT
from card_scale.model.vocabulary import Vocabulary
from card_scale.model.weights import LogicalWeight
from card_scale.objectives import registry
from card_scale.objectives.base import Objective
from card_scale.training.metric_sums import LOSS
from card_scale.training.train_step import StepResult, TrainStep

VOCABULARY = Vocabulary(size=250, mask_id=4)
STEPS = 3

STAGE_LAYERS = 2
"""Layers of a model that is one pipeline stage; those of several stages have four."""


class Trajectory(NamedTuple):
    """What a rank saw of STEPS updates."""

    losses: list[float]
    """The objective's loss of the global batch at each update."""
    norms: list[float]
    """The global gradient norm before clipping at each update."""
    state_sums: dict[str, float]
    """By state (weight, moments, moving average): its squares after the last update, weighted by their place and summed
    over the model."""
    tied_equal: bool | None
    """Whether the first and last stage's embeddings are bit-equal; None where this rank holds no such pair."""
    master_elements: int
    """Float32 weights that this rank updates."""
    resident_elements: int
    """Weights that this rank holds between updates for its next forward pass."""


def small_config(**changes) -> Config:
    """Return the configuration of the parity runs; keyword ``group=dict(key=value)`` changes keys."""
    config = Config(
        model=ModelConfig(layers=4, hidden=32, heads=4, ffn=48, length=16),
        data=DataConfig(path="synthetic"),
        # The clip lies below every norm of the run, so a wrong norm changes every weight.
        optimizer=OptimizerConfig(lr=1e-3, schedule="constant", clip=0.05, weight_decay=0.1),
        train=TrainConfig(steps=STEPS, global_batch=8, micro_batch=1),
    )
    for group, keys in changes.items():
        if group == "objective":
            changed = objective_with(config.objective, **keys)
        else:
            changed = dataclasses.replace(getattr(config, group), **keys)
        config = dataclasses.replace(config, **{group: changed})
    config.check()
    return config


def objective_with(objective: Objective, name: str | None = None, **keys) -> Objective:
    """Return the objective with other keys, or the one called ``name`` with them."""
    return dataclasses.replace(objective, **keys) if name is None else registry.create(name, **keys)


def global_batch(config: Config, step: int) -> Samples:
    """Return the clean tokens of an update; the same on every rank."""
    size, length = config.train.global_batch, config.model.length
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(5, VOCABULARY.size, (size, length + 1), generator=generator)
    ids = torch.arange(step * size, (step + 1) * size)
    return Samples(tokens, ids, torch.zeros_like(ids), ids, size, update=step)


def rank_batch(config: Config, step: int) -> Samples:
    """Return this rank's rows of the global batch, micro-batch-major."""
    data_rank, data_size = process_groups.data_rank(), dist.get_world_size(process_groups.data_group())
    size = config.train.micro_batch
    rows = torch.arange(config.train.global_batch).view(-1, data_size, size)[:, data_rank].reshape(-1)
    return global_batch(config, step).rows(rows)


def form_groups(config: Config) -> None:
    """Join this rank to the process groups of the configuration's layout."""
    process_groups.initialize(parallel_dims.plan(config, dist.get_world_size()), 60)


def run_variants(configs: list[Config]) -> list[Trajectory]:
    """Run each configuration (one tensor x pipeline layout, any engines) in this process; return their trajectories."""
    form_groups(configs[0])
    return [run(config) for config in configs]


def run(config: Config, note: str = "") -> Trajectory:
    """Make ``train.steps`` updates from the initial weights. The process groups must have formed.

    An error says in which configuration it arose, and ``note``.
    """
    try:
        engine, losses, norms = train(config)
        return Trajectory(
            losses,
            norms,
            {key: state_sum(engine, key) for key in engine.state_keys()},
            tied_copies_equal(engine),
            sum(_local(master).numel() for master in engine.master_weights()),
            sum(_local(parameter).numel() for parameter, _ in engine.weights()),
        )
    except Exception as error:
        error.add_note(f"in {config.parallel}, {config.model} {note}")
        raise


def engine_of(config: Config) -> ShardingEngine:
    """Build the engine of a configuration, at its initial weights."""
    dims = parallel_dims.plan(config, dist.get_world_size())
    return build_engine(config, dims, VOCABULARY, config.objective.attention)


def loss_and_norm(train_step: TrainStep, result: StepResult) -> tuple[float, float]:
    """Return the loss and the gradient norm of an update, finite or not."""
    return train_step.sums.read(result.local_sums)[LOSS], float(result.gradient_norm)


def train(config: Config) -> tuple[ShardingEngine, list[float], list[float]]:
    """Make ``train.steps`` updates from the initial weights; return (engine, losses, gradient norms)."""
    engine = engine_of(config)
    train_step = TrainStep(engine, config.objective, config)
    losses, norms = [], []
    for step in range(config.train.steps):
        loss, norm = loss_and_norm(train_step, train_step(rank_batch(config, step), config.optimizer.lr))
        losses.append(loss)
        norms.append(norm)
    return engine, losses, norms


def state_sum(engine: ShardingEngine, key: str) -> float:
    """Return the sum over the model of a state's squares, each weighted by its place in the whole model."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter, where in engine.weights():
        state = engine.full_state(parameter, key).double()
        if where.is_primary:
            total += (state.square() * where.select(_places(where))).sum()
    dist.all_reduce(total, group=process_groups.model_group())
    return float(total)


def tied_copies_equal(engine: ShardingEngine) -> bool | None:
    """Return whether the first and the last stage hold bit-equal embeddings, None where there is no pair to compare."""
    group = process_groups.tied_embedding_group()
    if not engine.chunks[0].tied or group is None or dist.get_world_size(group) == 1:
        return None
    (mine,) = (
        engine.full_state(p, WEIGHT).contiguous() for p, where in engine.weights() if where.name == "embedding.weight"
    )
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    return all(torch.equal(gathered[0], other) for other in gathered)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _places(where: LogicalWeight) -> Tensor:
    """Return a float64 number in [1, 2) for each element of a whole weight, another one for its neighbours."""
    count = torch.Size(where.global_shape).numel()
    return 1.0 + (torch.arange(count, dtype=torch.float64) * 0.6180339887498949).frac().view(where.global_shape)
