"""The run configurations: every one loads, fits the layout that its comment states, and has the stated size."""

import re

import pytest

from card_scale import config as configs
from card_scale.distributed import parallel_dims
from tests.launchers.processes import LAUNCHERS, REPOSITORY

PADDED_VOCABULARY = 50_368
PRESETS = ["ar-124m", "card-124m", "card-1b", "card-3b", "card-7b", "card-13b"]
BILLIONS = {"ar-124m": 0.124, "card-124m": 0.124, "card-1b": 1, "card-3b": 3, "card-7b": 7, "card-13b": 13}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # parallel.deepspeed is relative to it


def preset(name: str) -> tuple[str, configs.Config]:
    """Return (text, configuration)."""
    path = LAUNCHERS / "configs" / f"{name}.yaml"
    return path.read_text(encoding="utf-8"), configs.load(path, [])


def parameters(model: configs.ModelConfig) -> int:
    """Return the parameters of a Llama-shaped decoder, tensor by tensor."""
    attention = {"query": model.hidden**2, "key": model.hidden**2, "value": model.hidden**2, "out": model.hidden**2}
    feed_forward = dict.fromkeys(("gate", "up", "down"), model.hidden * model.ffn)
    norms = {"before attention": model.hidden, "before feed-forward": model.hidden}
    layer = sum((attention | feed_forward | norms).values())
    embeddings = PADDED_VOCABULARY * model.hidden * (1 if model.tie_embeddings else 2)
    final_norm = model.hidden
    return embeddings + model.layers * layer + final_norm


def test_every_configuration_is_checked_here():
    assert {path.stem for path in (LAUNCHERS / "configs").iterdir()} == {*PRESETS, "quickstart"}


def test_the_quickstart_loads():
    preset("quickstart")


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_as_stated(name):
    text, config = preset(name)
    stated, tied = re.search(
        r"^# Parameters: ([\d,]+) \((tied|untied) embeddings, padded vocabulary of 50,368\)", text, re.M
    ).groups()
    assert int(stated.replace(",", "")) == parameters(config.model)
    assert (tied == "tied") == config.model.tie_embeddings
    assert parameters(config.model) / 1e9 == pytest.approx(BILLIONS[name], rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_layouts_are_as_stated_and_fit(name):
    text, config = preset(name)
    layouts = re.findall(r"(\d+) GPUs = tensor (\d+) x pipeline (\d+) x data (\d+)", text)
    assert layouts[0][0] == "8"
    for ranks, tensor, pipeline, data in layouts:
        layout = parallel_dims.plan(config, int(ranks))
        assert (layout.tensor, layout.pipeline, layout.data) == (int(tensor), int(pipeline), int(data))


@pytest.mark.parametrize("name", PRESETS)
def test_tokens_are_as_stated(name):
    text, config = preset(name)
    updates, billions = re.search(r"^# ([\d,]+) updates are (\d+) billion tokens", text, re.M).groups()
    assert int(updates.replace(",", "")) == config.train.steps
    assert round(config.train.steps * config.train.global_batch * config.model.length / 1e9) == int(billions)


@pytest.mark.parametrize("name", ["card-1b", "card-3b", "card-7b", "card-13b"])
def test_checkpoints_take_the_stated_space(name):
    _, config = preset(name)
    train = config.train
    page = (REPOSITORY / "docs/checkpoints.md").read_text(encoding="utf-8")
    row = rf"^\| {name} \| ([\d.]+) GB \| (\d+): ([\d.]+) TB \| (\d+): (\d+) GB \|$"
    one, saves, every, most, kept = map(float, re.search(row, page, re.M).groups())
    gigabytes = 12 * parameters(config.model) / 1e9
    assert train.keep_last == 3
    assert (saves, most) == (train.steps / train.save_every, train.keep_last + train.steps // train.keep_every + 1)
    assert (one, every, kept) == (
        round(gigabytes, 1),
        round(gigabytes * saves / 1e3, 1),
        round(gigabytes * most),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_suit_the_hardware(name):
    _, config = preset(name)
    assert config.model.ffn % 256 == 0
    assert config.model.hidden // config.model.heads in (64, 128)
    assert config.train.precision == "bf16"


@pytest.mark.parametrize("name", ["card-3b", "card-7b", "card-13b"])
def test_large_models_are_fully_sharded_with_heads_of_128(name):
    text, config = preset(name)
    assert config.parallel.deepspeed == "ds_configs/zero3.json"
    assert config.model.hidden == 128 * config.model.heads
    assert config.model.heads % 8 == 0
    # bf16 weight, float32 gradient, master weight and two moments, over 8 GPUs.
    gigabytes = float(re.search(r"Weights, gradients and optimizer: ([\d.]+) GB for each of 8 GPUs", text).group(1))
    assert parameters(config.model) * (2 + 4 + 12) / 8 / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_the_1b_model_is_the_papers():
    _, config = preset("card-1b")
    assert (config.model.layers, config.model.hidden, config.model.ffn, config.model.heads) == (33, 1536, 4096, 24)
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.weight_decay, optimizer.clip) == (3e-4, (0.9, 0.95), 0.1, 1.0)
    assert (optimizer.schedule, optimizer.warmup_steps) == ("cosine", 2500)


def test_the_baseline_differs_in_the_objective_alone():
    _, card = preset("card-124m")
    _, ar = preset("ar-124m")
    one, other = card.flat(), ar.flat()
    assert {key for key in one.keys() & other.keys() if one[key] != other[key]} == {"run.dir", "objective.name"}
    assert all(key.startswith("objective.") for key in one.keys() ^ other.keys())
