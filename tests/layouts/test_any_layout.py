"""A checkpoint of any layout and either engine is loaded by any other, and nothing in it changes on the way.

What was loaded is saved again where it was loaded, and compared to the last bit with what was saved first. Both go
through a run's own resume and save, so that the small state goes the same way.
"""

import itertools
import math
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.config import Config
from card_scale.distributed import parallel_dims, process_groups
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.base import ShardingEngine
from card_scale.objectives.base import Objective
from card_scale.objectives.mask_interval import MAX_MASK, MIN_MASK
from card_scale.training.resume_point import VALIDATION_DIGEST
from card_scale.training.run_checkpoints import PASSED_OVER, RunCheckpoints
from card_scale.training.run_directory import RunDirectory
from card_scale.training.train_step import TrainStep
from tests.layouts.parity import TOLERANCE
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, loss_and_norm, rank_batch, small_config

STATE_RANGES = {"weight": (-0.1, 0.1), "exp_avg": (-0.1, 0.1), "exp_avg_sq": (0.0025, 0.01), "ema": (-0.1, 0.1)}
"""Every state, and the range of the values that it begins with."""

RANKS = (1, 2, 4)
SAMPLES = 50
"""In an epoch: the checkpoints are of the second and the third."""
CONTINUED_UPDATES = 2


class Place(NamedTuple):
    """Where a run trains."""

    layout: tuple[int, int, int]
    """(tensor, pipeline, data) sizes."""
    engine: str

    @property
    def name(self) -> str:
        return f"{'x'.join(map(str, self.layout))} {self.engine}"

    @property
    def step(self) -> int:
        """Updates made when a run is saved here: elsewhere another number, so that none passes for another's."""
        return 10 + PLACES.index(self)


# Those with a pipeline last: ZeRO-3 numbers all modules that a process has made, and compares the numbers of
# data-parallel ranks, which former stages of one pipeline have otherwise.
LAYOUTS = [(1, 1, 1), (1, 1, 2), (2, 1, 1), (1, 2, 1), (2, 1, 2), (2, 2, 1), (1, 2, 2)]
PLACES = [Place(layout, engine) for layout in LAYOUTS for engine in ("deepspeed", "fsdp2")]

VARIANTS = {
    "untied": {"model": {"layers": 2}},
    # With an objective that has found something to be kept.
    "tied": {
        "model": {"layers": 2, "tie_embeddings": True, "kv_heads": 2},
        "objective": {"name": "bd3lm", "block": 4, "search_interval": True},
    },
}
FOUND = {"untied": {}, "tied": {MIN_MASK: 0.3, MAX_MASK: 0.8}}

CONTINUED = {
    "tensor": (Place((1, 1, 1), "deepspeed"), Place((2, 1, 1), "deepspeed"), "untied"),
    "pipeline": (Place((1, 2, 2), "deepspeed"), Place((1, 1, 2), "deepspeed"), "tied"),
    "data": (Place((2, 1, 2), "fsdp2"), Place((2, 1, 1), "fsdp2"), "untied"),
    "engine": (Place((2, 2, 1), "deepspeed"), Place((2, 2, 1), "fsdp2"), "tied"),
}
"""By what alone changes: where a run is saved, where it goes on, and the variant."""

Losses = list[tuple[float, float]]
"""Loss and gradient norm of each update."""


class Run(NamedTuple):
    """A run at a place, with what of its data a checkpoint depends on."""

    config: Config
    engine: ShardingEngine
    dims: ParallelDims
    data: SimpleNamespace

    def checkpoints(self, directory: Path) -> RunCheckpoints:
        """Those in ``directory``/checkpoints."""
        return RunCheckpoints(self.engine, self.config, self.dims, self.data, RunDirectory(directory))

    def train(self, objective: Objective, first: int, count: int) -> Losses:
        train_step = TrainStep(self.engine, objective, self.config)
        batches = (rank_batch(self.config, step) for step in range(first, first + count))
        return [loss_and_norm(train_step, train_step(batch, self.config.optimizer.lr)) for batch in batches]


def runs(tokenizer: Path) -> Iterator[tuple[Place, str, Run]]:
    """Yield a run at each place of this job's size, of each variant. The process groups form anew for each layout."""
    train = SimpleNamespace(manifest=SimpleNamespace(digest="train"), sample_count=SAMPLES, tokenizer_path=tokenizer)
    validation = SimpleNamespace(manifest=SimpleNamespace(digest="held out"))
    data = SimpleNamespace(train=train, validation=validation, tokenizer_sha256="tokenizer")
    formed = None
    for place, variant in itertools.product(PLACES, VARIANTS):
        if math.prod(place.layout) != dist.get_world_size():
            continue
        config = config_of(place, variant)
        dims = parallel_dims.plan(config, dist.get_world_size())
        if place.layout != formed:
            parallel_state.destroy_model_parallel()
            process_groups.initialize(dims, 60)
            formed = place.layout
        yield place, variant, Run(config, engine_of(config), dims, data)


def config_of(place: Place, variant: str) -> Config:
    tensor, pipeline, _ = place.layout
    parallel = {"tensor": tensor, "pipeline": pipeline, "engine": place.engine}
    # Two micro-batches at least.
    train = {"micro_batch": 2, "async_save": place.engine == "fsdp2"}
    return small_config(parallel=parallel, optimizer={"ema": 0.9}, train=train, **VARIANTS[variant])


def beginning(name: str, shape: tuple[int, ...], key: str, place: Place) -> Tensor:
    """Return what a state of a whole parameter begins with at a place: each element another value."""
    low, high = STATE_RANGES[key]
    generator = torch.Generator().manual_seed(zlib.crc32(f"{place.name} {name} {key}".encode()))
    return low + (high - low) * torch.rand(shape, generator=generator)


def save_at_each_place(root: Path) -> dict[str, Losses]:
    """Give the engine at each place states of its own, make an update and save; return how those of CONTINUED go on.

    The update makes the states what they are in training, and not only what a load leaves.
    """
    continued = {}
    for place, variant, run in runs(root / "tokenizer.model"):
        run.engine.create_optimizer_state(place.step - 1)
        for parameter, where in run.engine.weights():
            for key in run.engine.state_keys():
                whole = beginning(where.name, where.global_shape, key, place)
                run.engine.set_full_state(parameter, key, where.select(whole))
        run.engine.publish_weights()
        objective = run.config.objective.with_state(FOUND[variant])
        run.train(objective, place.step - 1, 1)
        directory = saved_at(root, place, variant)
        checkpoints = run.checkpoints(directory.parent)
        # Beside training or not: the same bytes.
        checkpoints.save(place.step, objective, {}, 0, must=not run.config.train.async_save)
        checkpoints.wait()
        check_saved(run.engine, directory / directories.name_of(place.step))
        for change, (source, _, its_variant) in CONTINUED.items():
            if (source, its_variant) == (place, variant):
                continued[change] = run.train(objective, place.step, CONTINUED_UPDATES)
    return continued


def check_saved(engine: ShardingEngine, checkpoint: Path) -> None:
    """Raise AssertionError unless every rank's part of every state stands in the checkpoint to the last bit."""
    with CheckpointReader(checkpoint) as reader:
        for (parameter, where), key in itertools.product(engine.weights(), engine.state_keys()):
            held = engine.full_state(parameter, key)
            assert torch.equal(held.cpu(), where.select(reader.read(where.name, key))), (checkpoint, key, where.name)


class Loaded(NamedTuple):
    """What came of loading every checkpoint at the places of one job."""

    differences: dict[Place, list[str]]
    """By place, where what was saved there again is not what was loaded."""
    continued: dict[str, Losses]
    """How the runs of CONTINUED go on where they were loaded."""


def load_at_each_place(root: Path) -> Loaded:
    """At each place load what every place has saved, and save it again.

    Of each pair of places one variant, in turns, so that each place saves and loads both; both where it is the same
    place, and those of CONTINUED.
    """
    differences: dict[Place, list[str]] = {}
    continued = {}
    for place, variant, run in runs(root / "tokenizer.model"):
        checkpoints = run.checkpoints(root / "again" / place.name / variant)
        again = checkpoints.checkpointer.root
        for source in PLACES:
            in_turn = list(VARIANTS)[(PLACES.index(source) + PLACES.index(place)) // 2 % 2]
            if variant != in_turn and source != place and change_of(source, place, variant) is None:
                continue
            first = saved_at(root, source, variant)
            checkpoints.directory = RunDirectory(first.parent)
            start = checkpoints.resume()
            assert (start.step, start.is_new) == (source.step, False)
            checkpoints.save(start.step, start.objective, {}, start.passed_over, must=True)
            if dist.get_rank() == 0:
                paths = (path / directories.name_of(source.step) for path in (first, again))
                found = [f"{variant} of {source.name}: {text}" for text in compare(*paths, run)]
                differences.setdefault(place, []).extend(found)
                shutil.rmtree(again)
            if (change := change_of(source, place, variant)) is not None:
                continued[change] = run.train(start.objective, start.step, CONTINUED_UPDATES)
    return Loaded(differences, continued)


def change_of(source: Place, place: Place, variant: str) -> str | None:
    return next((change for change, pair in CONTINUED.items() if pair == (source, place, variant)), None)


def compare(first: Path, second: Path, run: Run) -> Iterator[str]:
    """Yield where a checkpoint that ``run`` saved differs from the one that it loaded."""
    with CheckpointReader(first) as one, CheckpointReader(second) as other:
        written = (other.manifest.layout, other.manifest.engine)
        if written != (run.dims.describe(), run.config.parallel.engine):
            yield f"written by {written}"
        if one.state != other.state:
            yield f"state {other.state} is not {one.state}"
        for what in ("state_keys", "step", "tokenizer_sha256", "data_digest"):
            if getattr(one.manifest, what) != getattr(other.manifest, what):
                yield f"{what} {getattr(other.manifest, what)} is not {getattr(one.manifest, what)}"
        if sorted(one.names()) != sorted(other.names()):
            yield f"parameters {sorted(other.names())}"
            return
        for name, key in itertools.product(one.names(), STATE_RANGES):
            if not torch.equal(one.read(name, key), other.read(name, key)):
                yield f"{key} of {name}"


def saved_at(root: Path, place: Place, variant: str) -> Path:
    return root / "first" / place.name / variant / "checkpoints"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, dict[str, Losses]]:
    """A checkpoint of each place and variant, and the losses of those runs that went on uninterrupted."""
    root = tmp_path_factory.mktemp("any layout")
    (root / "tokenizer.model").write_bytes(b"stand-in")
    continued: dict[str, Losses] = {}
    for ranks in RANKS:
        continued |= run_ranks(save_at_each_place, ranks, root, deadline=120)[0]
    return root, continued


@pytest.fixture(scope="module")
def loaded(saved) -> Loaded:
    """What came of loading all of them everywhere."""
    found = Loaded({}, {})
    for ranks in RANKS:
        of_job = run_ranks(load_at_each_place, ranks, saved[0], deadline=300)[0]
        found.differences.update(of_job.differences)
        found.continued.update(of_job.continued)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_what_is_saved_is_what_the_engine_was_given_and_an_update(saved, place, variant):
    """By an oracle that knows no layout: an update moves a value by less than an eighth of its range."""
    with CheckpointReader(saved_at(saved[0], place, variant) / directories.name_of(place.step)) as reader:
        assert reader.manifest.state_keys == list(STATE_RANGES)
        for name, (key, (low, high)) in itertools.product(reader.names(), STATE_RANGES.items()):
            whole = beginning(name, reader.shape(name), key, place)
            moved = (reader.read(name, key) - whole).abs().max()
            assert 0 < float(moved) < (high - low) / 8, (key, name)
        samples = place.step * 8
        assert reader.state == {
            "step": place.step,
            "samples": samples,
            "tokens": samples * 16,
            "epoch": samples // SAMPLES,
            "cursor": samples % SAMPLES,
            "seed": config_of(place, variant).run.seed,
            PASSED_OVER: 0,
            VALIDATION_DIGEST: "held out",
            **FOUND[variant],
        }


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_everything_that_any_place_saved_is_loaded_to_the_last_bit(loaded, place):
    assert loaded.differences[place] == []


@pytest.mark.parametrize("change", CONTINUED)
def test_the_run_goes_on_as_if_it_had_not_been_stopped(saved, loaded, change):
    expected, found = saved[1][change], loaded.continued[change]
    assert len(expected) == len(found) == CONTINUED_UPDATES
    for before, after in zip(expected, found, strict=True):
        assert after == pytest.approx(before, rel=TOLERANCE)
