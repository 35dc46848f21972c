"""A few updates of a small model on synthetic tokens, as every layout and engine must make them."""

import dataclasses
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from card_scale.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from card_scale.data.loader import Batch
from card_scale.distributed import parallel_dims as topology
from card_scale.distributed import process_groups
from card_scale.engine.base import WEIGHT, ShardingEngine
from card_scale.engine.build import build_engine
from card_scale.model.gpt import Vocabulary
from card_scale.model.weights import LogicalWeight
from card_scale.objectives import Objective, create_objective
from card_scale.training.update import Update

VOCABULARY = Vocabulary(size=250, mask_id=4)
STEPS = 5


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
        config = dataclasses.replace(config, **{group: dataclasses.replace(getattr(config, group), **keys)})
    config.check()
    return config


def global_batch(config: Config, step: int) -> Batch:
    """Return the clean tokens of an update; the same on every rank."""
    size, length = config.train.global_batch, config.model.length
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(5, VOCABULARY.size, (size, length + 1), generator=generator)
    ids = torch.arange(step * size, (step + 1) * size)
    return Batch(ids, torch.zeros_like(ids), tokens, ids)


def rank_batch(config: Config, step: int) -> Batch:
    """Return this rank's rows of the global batch, micro-batch-major."""
    data_rank, data_size = process_groups.data_rank(), dist.get_world_size(process_groups.data_group())
    size = config.train.micro_batch
    rows = torch.arange(config.train.global_batch).view(-1, data_size, size)[:, data_rank].reshape(-1)
    return Batch(*(field[rows] for field in global_batch(config, step)))


def objective_of(config: Config) -> Objective:
    return create_objective(**dataclasses.asdict(config.objective), mask_id=VOCABULARY.mask_id)


def form_groups(config: Config) -> None:
    """Join this rank to the process groups of the configuration's layout."""
    process_groups.form(topology.plan(config, dist.get_world_size()), 60)


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
            sum(_local(master).numel() for master in engine.masters()),
            sum(_local(parameter).numel() for parameter, _ in engine.weights()),
        )
    except Exception as error:
        error.add_note(f"in {config.parallel}, {config.model} {note}")
        raise


def train(config: Config) -> tuple[ShardingEngine, list[float], list[float]]:
    """Make ``train.steps`` updates from the initial weights; return (engine, losses, gradient norms)."""
    objective = objective_of(config)
    engine = build_engine(config, VOCABULARY, objective.attention)
    update = Update(engine, objective, config)
    losses, norms = [], []
    for step in range(config.train.steps):
        sums, norm = update(rank_batch(config, step), config.optimizer.lr)
        losses.append(update.report(sums).loss)
        norms.append(float(norm))
    return engine, losses, norms


def state_sum(engine: ShardingEngine, key: str) -> float:
    """Return the sum over the model of a state's squares, each weighted by its place in the whole model."""
    total = torch.zeros((), dtype=torch.float64)
    for parameter, where in engine.weights():
        state = engine.full_state(parameter, key).double()
        if where.counted:
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
