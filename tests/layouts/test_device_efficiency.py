"""What a GPU would lose time to, shown on a CPU: graph breaks inside a layer, and values read by the host in a step."""

import collections
import functools
import math
import traceback
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from card_scale.config import Config
from card_scale.engine import optimizer, schedule
from card_scale.objectives import noise, registry
from card_scale.training.train_step import TrainStep
from tests.layouts.parity import References, assert_parity
from tests.layouts.processes import run_ranks
from tests.layouts.test_parity import ARMD, BD3LM, ENGINES, MDLM, cell
from tests.layouts.trajectory import Trajectory, engine_of, form_groups, rank_batch, run
from tests.objectives.samples import samples_of

HOST_READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select")
"""Operations that wait for the device: .item(), branches on data, shapes that depend on data."""


MOST_LAUNCHES = {"ar": 4, "card": 50, "mdlm": 35, "bd3lm": 37, "armd": 24}
"""Of one corruption by tensor operations, the uniform numbers aside. On a GPU CARD, MDLM and BD3-LM have kernels of
their own, but for long rows and clipped intervals."""


class _Launches(TorchDispatchMode):
    """Counts operations that a GPU would launch a kernel for."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view and "empty" not in function.name()
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MOST_LAUNCHES)
def test_a_corruption_is_few_launches(monkeypatch, name):
    monkeypatch.setattr(noise, "uniforms", lambda _seed, ids, _epochs, length, _stream: torch.rand(len(ids), length))
    settings = {"permuted": 8, "ar_steps": 0, "permute_steps": 0} if name == "armd" else {}
    objective = registry.create(name, mask_id=4, **settings)
    samples = samples_of(torch.randint(5, 99, (4, 65)))
    with _Launches() as launches:
        objective.corrupt(samples, 1)
    assert MOST_LAUNCHES[name] / 2 < launches.count <= MOST_LAUNCHES[name]


MOST_GRAPHS = 4
"""Layers share their graphs, those of a first and of a last layer apart: far fewer than the ten layers."""

GRAPHS_ALONE = "aot_eager_decomp_partition"
"""Everything of torch.compile but the writing and building of kernels, which takes most of its time."""


class Compiled(NamedTuple):
    """A run with compiled layers, to be compared with one without."""

    engine: dict
    objective: dict
    model: dict
    sequence: bool = False
    backend: str = GRAPHS_ALONE

    def config(self, layout, model, *, compiled: bool) -> Config:
        """Not compiled it keeps all activations."""
        engine = self.engine if compiled else {**self.engine, "recompute": "none"}
        sizes, train = {**model, **self.model}, {"compile": compiled}
        return cell(layout, engine, False, self.sequence, objective=self.objective, model=sizes, train=train)


def run_and_count_graphs(cases) -> list[tuple[Trajectory, int]]:
    """Run (configuration, backend of torch.compile) one after the other; return trajectories and numbers of graphs."""
    form_groups(cases[0][0])
    found, compiling = [], torch.compile
    for config, backend in cases:
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        torch.compile = functools.partial(compiling, backend=backend)
        trajectory = run(config)
        found.append((trajectory, torch._dynamo.utils.counters["stats"]["unique_graphs"] - before))
    return found


def assert_compiled_parity(layout, model, cases, most_graphs):
    """Compilation is with fullgraph=True, so a graph break is an error."""
    plain, compiled = ([case.config(layout, model, compiled=value) for case in cases] for value in (False, True))
    backends = [case.backend for case in cases]
    ranks = run_ranks(run_and_count_graphs, math.prod(layout), list(zip(compiled, backends, strict=True)), deadline=300)
    found = [[trajectory for trajectory, _ in rank] for rank in ranks]
    assert_parity(layout, compiled, found, References().of(plain))
    for config, (_, graphs) in zip(compiled, ranks[0], strict=True):
        assert 1 <= graphs <= most_graphs, config  # the layers share them


def test_every_layer_compiles_as_one_graph_and_trains_the_same():
    cases = [
        Compiled({**ENGINES[2], "recompute": "selective"}, MDLM, {}, backend="inductor"),
        Compiled(ENGINES[3], BD3LM, {}),
        Compiled(ENGINES[1], ARMD, {}),
        Compiled({**ENGINES[4], "recompute": "full"}, {"name": "card"}, {"dropout": 0.1}),
    ]
    model = {"layers": 10, "hidden": 16, "heads": 2, "ffn": 24}
    assert_compiled_parity((1, 1, 1), model, cases, MOST_GRAPHS)


def test_collectives_of_tensor_parallelism_are_part_of_the_graph():
    cases = [
        Compiled(ENGINES[1], {"name": "card"}, {}, backend="inductor"),
        Compiled({**ENGINES[3], "recompute": "selective"}, BD3LM, {"dropout": 0.1}, sequence=True),
        Compiled({**ENGINES[4], "recompute": "full"}, ARMD, {}, sequence=True),
    ]
    model = {"layers": 7, "hidden": 16, "heads": 2, "ffn": 24}
    assert_compiled_parity((2, 1, 1), model, cases, model["layers"] - 1)


class Reads(NamedTuple):
    """Values that the host read in one update, by the file of the code that read them."""

    in_passes: dict[str, int]
    """Forward and backward."""
    in_all: dict[str, int]


class _HostReads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.by_file = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in HOST_READS:
            frames = [frame.filename for frame in traceback.extract_stack()]
            callers = [name for name in frames if not any(part in name for part in ("_dynamo", "_compile", __file__))]
            self.by_file[callers[-1].rpartition("site-packages/")[2]] += 1
        return function(*args, **(kwargs or {}))


def reads_of_an_update(configs) -> list[Reads]:
    optimizer.fused = lambda: True  # as on a GPU
    form_groups(configs[0])
    found = []
    for config in configs:
        update = TrainStep(engine_of(config), config.objective, config)
        update(rank_batch(config, 0), 1e-3)  # the first makes states and traces
        update(rank_batch(config, 1), 1e-3)
        batch = rank_batch(config, 2)
        passes = _HostReads()
        run = schedule.run

        def observed(*arguments, run=run, passes=passes, **keywords):
            with passes:
                return run(*arguments, **keywords)

        with pytest.MonkeyPatch.context() as patch, _HostReads() as whole:
            patch.setattr(schedule, "run", observed)
            update(batch, 1e-3)
        found.append(Reads(dict(passes.by_file), dict(whole.by_file + passes.by_file)))
    return found


DEEPSPEED_READS = {1: 3, 2: 4, 3: 1}
"""Reads of DeepSpeed 0.19.8's own step by stage, at most (the norm, the check of it and the factor of the clip)."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_host_reads_nothing_from_the_device(precision):
    engines = ENGINES if precision == "fp32" else ENGINES[1:]
    cells = [
        cell((1, 1, 1), engine, objective=objective, train={"precision": precision})
        for engine in engines
        for objective in ({"name": "card"}, MDLM, BD3LM | {"min_mask": 0.3}, ARMD)
    ]
    (found,) = run_ranks(reads_of_an_update, 1, cells, deadline=120)
    for config, reads in zip(cells, found, strict=True):
        what = f"{config.parallel}, {config.objective.name}: {reads}"
        assert reads.in_passes == {}, what
        # Adam's step counters live on the host, unless the fused kernel counts on the device, without reading.
        files = {name: count for name, count in reads.in_all.items() if not name.startswith("torch/optim/")}
        assert all(name.startswith("deepspeed/runtime/") for name in files), what
        allowed = 0 if config.parallel.engine == "fsdp2" else DEEPSPEED_READS.get(config.parallel.zero, 0)
        assert sum(files.values()) <= allowed, what
