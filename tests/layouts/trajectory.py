"""A few updates of a small model on synthetic tokens, as every layout and engine must make them."""

import dataclasses

import torch
import torch.distributed as dist

from card_scale.config import (
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ParallelConfig,
    TrainConfig,
)
from card_scale.data.loader import Batch
from card_scale.model.gpt import Vocabulary
from card_scale.objectives import create_objective
from card_scale.parallel import process_groups, topology
from card_scale.parallel.build import build_engine
from card_scale.parallel.engine import WEIGHT
from card_scale.training.update import Update

VOCABULARY = Vocabulary(size=250, mask_id=4)
STEPS = 5


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
    return Batch(ids, torch.zeros_like(ids), tokens)


def rank_batch(config: Config, step: int) -> Batch:
    """Return this rank's rows of the global batch, micro-batch-major."""
    data_rank, data_size = process_groups.data_rank(), dist.get_world_size(process_groups.data_group())
    size = config.train.micro_batch
    rows = torch.arange(config.train.global_batch).view(-1, data_size, size)[:, data_rank].reshape(-1)
    return Batch(*(field[rows] for field in global_batch(config, step)))


def objective_of(config: Config):
    settings = dataclasses.asdict(config.objective)
    if settings["name"] == "ar":
        settings = {"name": "ar"}
    else:
        settings["mask_id"] = VOCABULARY.mask_id
    return create_objective(settings.pop("name"), **settings)


def run_variants(configs: list[Config]) -> list[dict]:
    """Run each configuration (one tensor x pipeline layout, any engines) in this process; return their trajectories."""
    first = topology.plan(configs[0], dist.get_world_size())
    process_groups.form(first, 60)
    return [run(config) for config in configs]


def run(config: Config) -> dict:
    """Return losses, norms and whether the tied copies are equal, of STEPS updates."""
    objective = objective_of(config)
    engine = build_engine(config, VOCABULARY, objective.attention)
    update = Update(engine, objective, config)
    losses, norms = [], []
    for step in range(config.train.steps):
        sums, norm = update(rank_batch(config, step), config.optimizer.lr)
        losses.append(update.report(sums).loss)
        norms.append(float(norm))
    return {"losses": losses, "norms": norms, "tied_equal": tied_copies_equal(engine)}


def tied_copies_equal(engine) -> bool:
    """Return whether the first and the last stage hold bit-equal embeddings."""
    group = process_groups.tied_embedding_group()
    copies = [p for p, where in engine.weights() if where.name == "embedding.weight"]
    if not engine.chunks[0].tied or group is None or not copies:
        return True
    mine = engine.full_state(copies[0], WEIGHT).contiguous()
    gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, mine, group=group)
    return all(torch.equal(gathered[0], other) for other in gathered)


__all__ = ["ObjectiveConfig", "ParallelConfig", "global_batch", "rank_batch", "run", "run_variants", "small_config"]
