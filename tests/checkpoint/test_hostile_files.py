"""Whoever can write a checkpoint or a configuration cannot run code by it: it is refused by the name of the file.

What is planted makes a directory where anything unpickles it, which fails the test (tests/hostile.py). The manifest
says of it what is there: hashes tell damage, and not who wrote a file.
"""

import io
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from card_scale import config as configs
from card_scale.checkpoint import directory as directories
from card_scale.checkpoint.format import CONFIG_NAME, MANIFEST_NAME, STATE_NAME, StoredFile, StoredPiece
from card_scale.engine.deepspeed import settings
from card_scale.errors import CheckpointError, ConfigurationError, ForeignRunError
from card_scale.files import sha256_file
from card_scale.studies import grid
from card_scale.training import resume_point
from card_scale.training.run_directory import RunDirectory
from tests.checkpoint.conftest import Tool
from tests.checkpoint.handmade import publish
from tests.corpora import TOKENIZER_NAME
from tests.generation.conftest import TINY, make_model, whole_model_weights
from tests.hostile import FORMATS, Hostile

BASE = "launchers/configs/quickstart.yaml"
FILES = [MANIFEST_NAME, STATE_NAME, CONFIG_NAME, TOKENIZER_NAME, "model/all.safetensors", "optimizer/all.safetensors"]

UNPICKLING: dict[str, Callable[[bytes], object]] = {
    "pickle": pickle.loads,
    "pickle in ASCII": pickle.loads,
    "torch": lambda content: torch.load(io.BytesIO(content), weights_only=False),
    "torch before zip": lambda content: torch.load(io.BytesIO(content), weights_only=False),
    "npy of objects": lambda content: np.load(io.BytesIO(content), allow_pickle=True),
    "npz of objects": lambda content: np.load(io.BytesIO(content), allow_pickle=True)["arr_0"],
}


def test_what_is_planted_does_run_where_it_is_unpickled(hostile):
    for name, content in hostile.files.items():
        UNPICKLING[name](content)
        assert hostile.sprung(), name
    for text in hostile.yaml:
        yaml.unsafe_load(text)
        assert hostile.sprung(), text


@pytest.fixture
def checkpoint(tmp_path, tokenizer_path) -> Path:
    """The newer of a run's two checkpoints, of a small model with its real configuration and tokenizer."""
    model = make_model(3.0, dtype=torch.float32, rows=448, vocabulary=400, rotary_base=1e4, tied=True)
    weights = {name: weight.float() for name, weight in whole_model_weights(model).items()}
    cuts = {name: (0, [StoredPiece("all", 0, len(weight))]) for name, weight in weights.items()}
    for step in (10, 20):
        path = publish(tmp_path / "run/checkpoints", step, {"weight": weights, "exp_avg": weights}, cuts)
        (path / CONFIG_NAME).write_text(configs.load(BASE, ["data.path=nowhere", *TINY]).to_yaml())
        (path / TOKENIZER_NAME).write_bytes(tokenizer_path.read_bytes())
        let_manifest_agree(path)
    return path


def let_manifest_agree(checkpoint: Path) -> None:
    """Make the manifest say of every file what is there."""
    path = checkpoint / MANIFEST_NAME
    content = json.loads(path.read_text())
    content.pop("sha256", None)
    content["files"] = {name: asdict(StoredFile.synced(checkpoint / name)) for name in content["files"]}
    content["tokenizer_sha256"] = sha256_file(checkpoint / TOKENIZER_NAME)
    path.write_text(json.dumps(content))


def said_of(tool: Tool, checkpoint: Path, tmp_path: Path) -> tuple[list[int], str]:
    """Return the exit codes of all commands that read a checkpoint, and everything that they say."""
    run, older = checkpoint.parents[1], checkpoint.parent / directories.name_of(10)
    shutil.rmtree(tmp_path / "folder", ignore_errors=True)
    commands = [
        ("list", run),
        ("verify", run),
        ("show", checkpoint, "--tensors"),
        ("diff", older, checkpoint, "--states"),
        ("export", checkpoint, tmp_path / "folder"),
        ("prune", run, "--keep-last", 2),
    ]
    answers = [tool(*command) for command in commands]
    return [code for code, _, _ in answers], "\n".join(out + errors for _, out, errors in answers)


def test_every_command_reads_what_is_sound(tool, checkpoint, tmp_path):
    codes, words = said_of(tool, checkpoint, tmp_path)
    assert codes == [0] * 6, words


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_checkpoint_is_unpickled(tool, checkpoint, tmp_path, hostile: Hostile, name):
    for content in hostile.files.values():
        (checkpoint / name).write_bytes(content)
        if name != MANIFEST_NAME:
            let_manifest_agree(checkpoint)
        codes, words = said_of(tool, checkpoint, tmp_path)
        assert any(codes)
        # Whatever is refused is refused for it.
        assert sum(str(checkpoint) in line and name in line for line in words.splitlines()) >= sum(map(bool, codes))
        assert not hostile.marker.exists()


def test_a_run_does_not_resume_from_it(checkpoint, hostile):
    """Of the files that are read before hashes are compared."""
    for name in (STATE_NAME, MANIFEST_NAME):
        for content in hostile.files.values():
            (checkpoint / name).write_bytes(content)
            if name != MANIFEST_NAME:
                let_manifest_agree(checkpoint)
            point = resume_point.find(checkpoint.parent)
            assert point.manifest.step == 10
            assert len(point.passed_over) == 1
            assert str(checkpoint) in point.passed_over[0]
            assert name in point.passed_over[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_pointer_that_is_none_leads_nowhere(tool, checkpoint, hostile, kind):
    (checkpoint.parent / directories.POINTER).write_bytes(hostile.files[kind])
    assert resume_point.find(checkpoint.parent).manifest.step == 20
    assert tool("list", checkpoint.parent)[0] == 0


FRAMES = [
    "{}",
    "run: {}",
    "run:\n  dir: {}\n",
    "run:\n  ? {}\n  : 1\n",
    "model:\n  layers: [1, {}]\n",
    "run: {dir: &x {}}\nmodel: *x\n",
]
"""Where in a YAML file a tag may stand."""


def hostile_texts(hostile: Hostile) -> list[bytes]:
    return [
        *(frame.replace("{}", text).encode() for frame in FRAMES for text in hostile.yaml),
        *hostile.files.values(),
    ]


def test_a_configuration_makes_plain_values_alone(tmp_path, hostile):
    path = tmp_path / "run/config.yaml"
    path.parent.mkdir()
    sound = configs.load(BASE, ["data.path=nowhere"])
    for content in hostile_texts(hostile):
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=str(path)):
            configs.load(path, [])
        with pytest.raises(ForeignRunError, match=str(path)):
            RunDirectory(path.parent).check_same_run(sound)
        with pytest.raises(ConfigurationError, match=str(path)):
            grid.load(path)
        with pytest.raises(ConfigurationError, match=str(path)):
            settings.read(str(path))
    for text in hostile.yaml:
        with pytest.raises(ConfigurationError, match=r"override run\.dir="):
            configs.load(BASE, [f"run.dir={text}"])


def test_tags_in_the_configuration_of_a_checkpoint(tool, checkpoint, tmp_path, hostile):
    for content in hostile_texts(hostile)[: len(FRAMES) * len(hostile.yaml)]:
        (checkpoint / CONFIG_NAME).write_bytes(content)
        let_manifest_agree(checkpoint)
        codes, words = said_of(tool, checkpoint, tmp_path)
        assert codes == [0, 0, 0, 5, 5, 0]
        assert words.count(f"error: checkpoint {checkpoint}: ") == 2
        assert words.count(CONFIG_NAME) >= 2


@pytest.mark.parametrize("name", ["os:mkdir", "builtins:exec", "tests.hostile:Hostile", "card_scale.cli:run_tool"])
def test_an_objective_is_no_function_by_its_name(tmp_path, name):
    """``module:class`` stands in the registry and in installed packages, never in a configuration."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"objective": {"name": name}}))
    with pytest.raises(ConfigurationError, match=f"{path}: objective.name is '{name}'; valid are card, "):
        configs.load(path, [])


def test_a_configuration_without_groups_is_named(tool, checkpoint):
    (checkpoint / CONFIG_NAME).write_text("- 1\n")
    let_manifest_agree(checkpoint)
    code, _, words = tool("diff", checkpoint.parent / directories.name_of(10), checkpoint)
    assert (code, words.count(CONFIG_NAME)) == (CheckpointError.exit_code, 1)
