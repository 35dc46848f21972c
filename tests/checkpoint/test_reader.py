"""Reading without an engine: whole tensors and ranges of them, however they are stored; what is not there is named."""

import itertools
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.checkpoint.checkpointer import Checkpointer
from card_scale.checkpoint.commit import Publication, form_commit_group
from card_scale.checkpoint.format import StoredPiece
from card_scale.checkpoint.reader import CheckpointReader
from card_scale.checkpoint.retention import Retention
from card_scale.errors import CheckpointError
from tests.checkpoint import handmade
from tests.layouts.processes import run_ranks
from tests.layouts.trajectory import engine_of, form_groups, small_config

KEYS = ["weight", "exp_avg"]


@st.composite
def stored_models(draw):
    """Return ({state key: {name: tensor}}, {name: how it is cut})."""
    states, cuts = {key: {} for key in KEYS}, {}
    for number in range(draw(st.integers(1, 3))):
        name = f"layers.{number}.weight"
        shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
        dimension = draw(st.integers(0, len(shape) - 1))
        inner = draw(st.sets(st.integers(1, max(1, shape[dimension] - 1)), max_size=3)) - {shape[dimension]}
        bounds = [0, *sorted(inner), shape[dimension]]
        pieces = [StoredPiece(draw(st.sampled_from("abc")), *pair) for pair in itertools.pairwise(bounds)]
        cuts[name] = (dimension, draw(st.permutations(pieces)))
        for position, key in enumerate(KEYS):
            states[key][name] = (
                torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape) + 1000 * position
            )
    return states, cuts


@given(stored_models(), st.data())
@settings(max_examples=60)
def test_ranges_are_those_of_the_whole_tensor(tmp_path_factory, model, data):
    states, cuts = model
    with CheckpointReader(handmade.publish(tmp_path_factory.mktemp("read"), 1, states, cuts)) as reader:
        assert sorted(reader.names()) == sorted(cuts)
        for key in KEYS:
            for name, whole in states[key].items():
                assert reader.shape(name) == tuple(whole.shape)
                found = reader.read(name, key)
                assert found.dtype == torch.float32
                assert torch.equal(found, whole)
                dimension = data.draw(st.integers(0, whole.dim() - 1))
                start = data.draw(st.integers(0, whole.shape[dimension] - 1))
                stop = data.draw(st.integers(start + 1, whole.shape[dimension]))
                expected = whole.narrow(dimension, start, stop - start)
                assert torch.equal(reader.read_slice(name, dimension, start, stop, key), expected)


@pytest.fixture
def checkpoint(tmp_path):
    """The directory of a checkpoint with one parameter of 4 x 6, cut by columns."""
    states = {"weight": {"w": torch.arange(24.0).view(4, 6)}}
    return handmade.publish(tmp_path, 7, states, {"w": (1, [StoredPiece("a", 0, 2), StoredPiece("b", 2, 6)])})


def test_what_stands_beside_the_tensors(checkpoint):
    reader = CheckpointReader(checkpoint)
    assert reader.manifest.step == 7
    assert reader.state == {"step": 7}
    assert reader.config_path.read_text() == "run: {}\n"
    assert reader.tokenizer_path.read_bytes() == b"stand-in"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("v", 0, 0, 1), ["'v'", "it has w"]),
        (("w", 0, 0, 1, "ema"), ["'ema' of w", "it has weight"]),
        (("w", 2, 0, 1), ["dimension 2", "w", "[4, 6]"]),
        (("w", -1, 0, 1), ["dimension -1", "[4, 6]"]),
        (("w", 0, 2, 5), ["[2:5]", "dimension 0", "[4, 6]"]),
        (("w", 1, -1, 5), ["[-1:5]"]),
        (("w", 1, 3, 3), ["[3:3]"]),
    ],
)
def test_what_is_not_there_is_named(checkpoint, arguments, words):
    with CheckpointReader(checkpoint) as reader, pytest.raises(CheckpointError) as caught:
        reader.read_slice(*arguments)
    for word in [str(checkpoint), *words]:
        assert word in str(caught.value)


def test_a_whole_tensor_that_is_not_there_is_named(checkpoint):
    with CheckpointReader(checkpoint) as reader:
        with pytest.raises(CheckpointError, match="'v'"):
            reader.read("v")
        with pytest.raises(CheckpointError, match="'v'"):
            reader.shape("v")


def test_damage_is_named(checkpoint):
    for name in ("model/b.safetensors", "state.json"):
        (checkpoint / name).write_bytes(b"\xff" * (checkpoint / name).stat().st_size)
    with CheckpointReader(checkpoint) as reader:
        assert reader.read_slice("w", 1, 0, 2).shape == (4, 2)
        with pytest.raises(CheckpointError, match=r"file model/b\.safetensors"):
            reader.read("w")
        with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
            _ = reader.state


def test_an_incomplete_checkpoint_is_not_opened(checkpoint):
    (checkpoint / "model/b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model/b\.safetensors is missing"):
        CheckpointReader(checkpoint)


def test_neither_megatron_nor_deepspeed_is_imported(checkpoint):
    program = f"""
import sys
from pathlib import Path
from card_scale.checkpoint.reader import CheckpointReader
with CheckpointReader(Path({str(checkpoint)!r})) as reader:
    print(float(reader.read("w").sum()))
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"megatron", "deepspeed"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "276.0\n[]\n"


LAYOUTS = {
    "one rank": (1, dict(zero=0)),
    "tp2 pp2, ZeRO-3": (4, dict(tensor=2, pipeline=2, zero=3)),
}
"""Whole, and in pieces of every kind; all layouts and engines are those of tests/layouts/test_any_layout.py."""


def save_initial(parallel, root):
    """Save the initial weights, which are the same in every layout."""
    config = small_config(parallel=parallel, model=dict(layers=2))
    form_groups(config)
    engine = engine_of(config)
    engine.create_optimizer_state(0)
    description = handmade.description(1, list(engine.state_keys()))
    publication = Publication(description, handmade.run_files(1), Retention())
    return Checkpointer(root, form_commit_group(60)).save(engine, publication)


def test_pieces_are_read_as_one_tensor_and_by_slices(tmp_path):
    found = {}
    for layout, (ranks, parallel) in LAYOUTS.items():
        root = tmp_path / layout
        root.mkdir()
        with CheckpointReader(run_ranks(save_initial, ranks, parallel, root)[0]) as reader:
            found[layout] = {name: reader.read(name) for name in reader.names()}
            for name, whole in found[layout].items():
                assert reader.shape(name) == tuple(whole.shape)
                assert not reader.read(name, "exp_avg").any()
                for dimension, size in enumerate(whole.shape):
                    start, stop = size // 3, size - size // 4
                    expected = whole.narrow(dimension, start, stop - start)
                    assert torch.equal(reader.read_slice(name, dimension, start, stop), expected), (layout, name)
    for layout, weights in found.items():
        assert weights.keys() == found["one rank"].keys()
        for name, weight in weights.items():
            assert torch.equal(weight, found["one rank"][name]), (layout, name)
