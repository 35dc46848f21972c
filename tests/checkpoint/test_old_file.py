"""A checkpoint of version 0.1.0, kept in data/: two updates of a one-layer model on two tensor-parallel ranks, ZeRO-1.

Written on 2026-11-27 by the code at commit 2239410, the last before saving had phases. The hashes were taken with NumPy
and safetensors alone.
"""

import hashlib
from pathlib import Path

import pytest

from card_scale import config as configs
from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.load import load
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.distributed import parallel_dims
from card_scale.engine.build import build_engine
from card_scale.model.vocabulary import Vocabulary
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import form_groups

ROOT = Path(__file__).parent / "data"
SHA256 = {
    "weight": "7b070d58e9d9cf34bf3f714cc5b922f0504bec03ced2e192a6c6397fc440c951",
    "exp_avg": "8e4c7aa1adfb3e704f4bff90b0b8aed54b1cc0e62eb0fc535d352dea9699b9e0",
    "exp_avg_sq": "29e69a2d6a6f2c8ed49392b85b629cbd2ef894c29d8a628fe3d71d9e7956ff1e",
}
"""By state: of every parameter's name and float32 values, in the order of the names."""

VOCABULARY = Vocabulary(size=60, mask_id=4)


def hash_of(tensors) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].numpy().tobytes())
    return found.hexdigest()


def test_the_reader_reads_it():
    path, manifest, problems = directories.find_latest(ROOT)
    assert (manifest.step, problems) == (2, [])
    with CheckpointReader(path) as reader:
        assert reader.state == {"step": 2}
        for key, expected in SHA256.items():
            assert hash_of({name: reader.read(name, key) for name in reader.names()}) == expected, key


def load_into(parallel: list[str]) -> dict[str, str]:
    """Return the hashes of one rank's states after a load."""
    with CheckpointReader(directories.find_latest(ROOT)[0]) as reader:
        config = configs.load(reader.config_path, ["parallel.tensor=1", *parallel])
        form_groups(config)
        engine = build_engine(config, parallel_dims.plan(config, 1), VOCABULARY, config.objective.attention)
        load(engine, reader)
    return {
        key: hash_of({where.name: engine.full_state(parameter, key).cpu() for parameter, where in engine.weights()})
        for key in engine.state_keys()
    }


@pytest.mark.parametrize("parallel", [["parallel.zero=2"], ["parallel.zero=null", "parallel.engine=fsdp2"]])
def test_either_engine_loads_it(parallel):
    assert run_ranks(load_into, 1, parallel, deadline=60) == [SHA256]
