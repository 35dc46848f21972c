"""The configuration: what is accepted, and what each refusal says."""

import typing

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from card_scale.config import (
    MEGATRON_ALIASES,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    TrainConfig,
    load,
    parse_overrides,
)
from card_scale.errors import CommandLineError, ConfigurationError, ExitCode
from card_scale.objectives import registry
from card_scale.objectives.base import Objective
from tests.config.texts import TEXT

KEYS = [
    *(key for key in Config().flat() if not key.startswith("objective.")),
    "objective.name",
    *(f"objective.{key}" for name in registry.BUILT_IN for key in registry.keys(registry.objective_class(name))),
]
BASE = {"data": {"path": "dataset"}, "train": {"steps": 10}}


@pytest.fixture
def file(tmp_path):
    """The path of a smallest valid configuration."""
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def refusal(path, overrides) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(path, overrides)
    assert caught.value.exit_code == ExitCode.CONFIGURATION == 3
    return str(caught.value)


def test_the_smallest_file_gives_the_documented_defaults(file):
    config = load(file, [])
    assert (config.objective.tail_factor, config.objective.decay, config.objective.beta) == (1.5, 0.5, 1.0)
    assert (config.objective.name, config.objective.masking, config.objective.reweight) == ("card", "soft_tail", True)
    assert (config.objective.min_noise, config.objective.max_noise) == (0.0, 1.0)
    assert (config.parallel.engine, config.parallel.zero) == ("deepspeed", None)
    assert config.train.steps == 10


def test_overrides_apply_in_order_over_the_file(file):
    config = load(file, ["train.steps=20", "optimizer.lr=1e-3", "model.tie_embeddings=true", "train.steps=30"])
    assert config.train.steps == 30
    assert config.optimizer.lr == 1e-3
    assert config.model.tie_embeddings is True


@pytest.mark.parametrize(
    "overrides, key, value",
    [
        (["--lr", "3e-4"], "optimizer.lr", 3e-4),
        (["--lr=3e-4"], "optimizer.lr", 3e-4),
        (["--lr", "1"], "optimizer.lr", 1.0),
        (["--min_lr", "1.0e-5"], "optimizer.min_lr", 1e-5),
        (["--tensor-model-parallel-size", "2"], "parallel.tensor", 2),
        (["--pipeline-model-parallel-size=2"], "parallel.pipeline", 2),
        (["--tensor-model-parallel-size", "2", "--sequence-parallel"], "parallel.sequence", True),
        (["--bf16"], "train.precision", "bf16"),
        (["--lr-decay-style", "WSD"], "optimizer.schedule", "wsd"),
        (["--train-iters", "7"], "train.steps", 7),
        (["--save", "runs/one"], "run.dir", "runs/one"),
        (["--seed", "5"], "run.seed", 5),
        (["optimizer.betas=[0.9, 0.99]"], "optimizer.betas", (0.9, 0.99)),
        (["objective.name=armd", "objective.permuted=0", "objective.strides=[1, 4]"], "objective.strides", (1, 4)),
        (["data.unique_tokens=null"], "data.unique_tokens", None),
        (["data.epochs=2.5"], "data.epochs", 2.5),
        (["run.dir=a=b"], "run.dir", "a=b"),
        (["run.dir=2026-11-28"], "run.dir", "2026-11-28"),
        (["train.steps=1e6"], "train.steps", 1_000_000),
        (["data.unique_tokens=none"], "data.unique_tokens", None),
        (["data.validation=None"], "data.validation", None),
        (["parallel.recompute=none"], "parallel.recompute", "none"),
    ],
)
def test_values_arrive_under_their_key(file, overrides, key, value):
    group, _, name = key.partition(".")
    found = getattr(getattr(load(file, overrides), group), name)
    assert found == value
    assert type(found) is type(value)


def test_a_home_directory_is_meant(file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    paths = ("run.dir", "run.init_from", "data.path", "data.validation", "parallel.deepspeed")
    values = load(file, [f"{key}=~/x" for key in paths]).flat()
    assert {values[key] for key in paths} == {"/home/someone/x"}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["--num-layer", "3"], ["--num-layer", "did you mean --num-layers?"]),
        (["--fp16"], ["unknown option --fp16", "did you mean --bf16?"]),
        (["-lr", "3"], ["unknown option -lr", "did you mean --lr?"]),
        (["--dryrun"], ["unknown option --dryrun", "did you mean --dry-run?"]),
        (["--xyzzy"], ["unknown option --xyzzy", "--help"]),
        (["--lr"], ["--lr", "needs a value"]),
        (["train.steps", "5"], ["'train.steps'", "group.key=value"]),
    ],
)
def test_what_is_no_override_is_an_error_of_the_command_line(overrides, words):
    with pytest.raises(CommandLineError) as caught:
        parse_overrides(overrides, ["dry-run", "print-config"])
    assert caught.value.exit_code == ExitCode.COMMAND_LINE == 2
    assert all(word in str(caught.value) for word in words), caught.value


def test_every_megatron_alias_names_a_key():
    assert set(MEGATRON_ALIASES.values()) <= set(KEYS)


@pytest.mark.parametrize(
    "overrides, words",
    [
        # Unknown and mistyped names: the nearest valid one, or all of them.
        (["modle.layers=2"], ["unknown group 'modle'", "did you mean model?"]),
        (["model.layer=2"], ["unknown key model.layer", "did you mean layers?"]),
        (["objective.tailfactor=2"], ["objective.tailfactor", "did you mean tail_factor?"]),
        (["parallel.tensor_parallel=2"], ["parallel.tensor_parallel", "valid:", "tensor, virtual_pipeline"]),
        (["train.zzz=2"], ["train.zzz", "valid:", "global_batch", "micro_batch"]),
        (["steps=3"], ["unknown group 'steps'"]),
        (["train.steps=[1"], ["train.steps", "not a YAML value"]),
        # Types: key, value, and what it takes.
        (["model.layers=2.5"], ["model.layers is 2.5", "a whole number"]),
        (["model.layers=true"], ["model.layers is True", "a whole number"]),
        (["model.layers=two"], ["model.layers is 'two'", "a whole number"]),
        (["model.layers=null"], ["model.layers is None", "a whole number"]),
        (["train.steps=1e-3"], ["train.steps is 0.001", "a whole number or null"]),
        (["train.steps=0100"], ["train.steps is '0100'", "a whole number or null"]),
        (["train.steps=1:30"], ["train.steps is '1:30'", "a whole number or null"]),
        (["model.dropout=no"], ["model.dropout is False", "a number"]),
        (["optimizer.lr=fast"], ["optimizer.lr is 'fast'", "a number"]),
        (["optimizer.lr=.nan"], ["optimizer.lr is nan", "a number"]),
        (["optimizer.lr=.inf"], ["optimizer.lr is inf", "a number"]),
        ([f"optimizer.lr={10**400}"], ["optimizer.lr is 1000", "a number"]),
        (["model.tie_embeddings=1"], ["model.tie_embeddings is 1", "true or false"]),
        (["optimizer.betas=[0.9]"], ["optimizer.betas is [0.9]", "a list of two numbers"]),
        (["objective.name=armd", "objective.strides=2"], ["objective.strides is 2", "a list of whole numbers"]),
        (["objective.name=armd", "objective.strides=[1.5]"], ["objective.strides", "a list of whole numbers"]),
        (["run.dir=7"], ["run.dir is 7", "text"]),
        (["data.path=[a]"], ["data.path is ['a']", "text"]),
        (["objective.name=bert"], ["objective.name is 'bert'", "card, ar"]),
        (["objective.masking=[uniform]"], ["objective.masking", "soft_tail | uniform | spans"]),
        (["parallel.engine=megatron"], ["parallel.engine is 'megatron'", "deepspeed | fsdp2"]),
        (["train.precision=fp16"], ["train.precision is 'fp16'", "fp32 | bf16"]),
        (["optimizer.schedule=linear"], ["optimizer.schedule is 'linear'", "cosine | wsd | constant"]),
        (["parallel.recompute=half"], ["parallel.recompute", "none | selective | full"]),
        # Ranges.
        (["model.layers=0"], ["model.layers is 0", "at least 1"]),
        (["model.length=1"], ["model.length is 1", "at least 2"]),
        (["model.dropout=1.0"], ["model.dropout is 1.0", "[0, 1)"]),
        (["run.dir="], ["run.dir"]),
        (["run.dir=''"], ["run.dir is ''", "a directory name"]),
        (["run.seed=-1"], ["run.seed is -1", "[0, 2^63)"]),
        (["objective.tail_factor=0.9"], ["objective.tail_factor is 0.9", "at least 1"]),
        (["objective.decay=1.5"], ["objective.decay is 1.5", "from 0 to 1"]),
        (["objective.beta=0"], ["objective.beta is 0.0", "at least 1e-06"]),
        (["objective.beta=1e-9"], ["objective.beta is 1e-09", "at least 1e-06"]),
        (["objective.max_noise=1.1"], ["objective.max_noise is 1.1", "from 0.0 to 1"]),
        (["data.path="], ["data.path"]),
        (["data.unique_tokens=256"], ["data.unique_tokens is 256", "above model.length"]),
        (["data.epochs=0"], ["data.epochs is 0.0", "above 0"]),
        (["parallel.zero=4"], ["parallel.zero is 4", "0, 1, 2 or 3"]),
        (["parallel.tensor=0"], ["parallel.tensor is 0", "at least 1"]),
        (["optimizer.lr=0"], ["optimizer.lr is 0.0", "above 0"]),
        (["optimizer.min_lr=1"], ["optimizer.min_lr is 1.0", "between 0 and optimizer.lr"]),
        (["optimizer.betas=[0.9, 1.0]"], ["optimizer.betas", "[0, 1)"]),
        (["optimizer.clip=-1"], ["optimizer.clip is -1.0", "0 (no clipping) or more"]),
        (["optimizer.ema=1"], ["optimizer.ema is 1.0", "[0, 1)"]),
        (["train.steps=0"], ["train.steps is 0", "at least 1"]),
        (["train.log_every=-1"], ["train.log_every is -1", "0 (only at the end) or more"]),
        (["train.save_every=-1"], ["train.save_every is -1", "0 (only at the end) or more"]),
        (["train.keep_last=-1"], ["train.keep_last is -1", "0 (all) or at least 2"]),
        (["train.keep_last=1"], ["train.keep_last is 1", "at least 2", "newest checkpoint may turn out damaged"]),
        (["train.keep_every=-1"], ["train.keep_every is -1", "0 (none) or more"]),
        # Combinations: both keys and both values.
        (["model.hidden=100", "model.heads=7"], ["model.hidden 100", "model.heads 7"]),
        (["model.hidden=21", "model.heads=7"], ["head size", "3"]),
        (["parallel.tensor=4"], ["model.heads 6", "parallel.tensor 4"]),
        (["parallel.tensor=3", "model.ffn=500"], ["model.ffn 500", "parallel.tensor 3"]),
        (["parallel.pipeline=3"], ["model.layers 4", "parallel.pipeline 3"]),
        (["parallel.pipeline=2", "parallel.virtual_pipeline=4"], ["model.layers 4", "virtual_pipeline 4"]),
        (["parallel.virtual_pipeline=2"], ["parallel.virtual_pipeline 2", "parallel.pipeline is 1"]),
        (["parallel.sequence=true"], ["parallel.sequence is true", "parallel.tensor is 1"]),
        (
            ["parallel.sequence=true", "parallel.tensor=2", "model.length=255"],
            ["model.length 255", "parallel.tensor 2", "parallel.sequence"],
        ),
        (["model.kv_heads=4"], ["model.heads 6", "model.kv_heads 4"]),
        (["model.kv_heads=3", "parallel.tensor=2"], ["model.kv_heads 3", "parallel.tensor 2"]),
        (["objective.name=bd3lm", "objective.block=3"], ["objective.block 3", "model.length 256", "valid: 1, 2, 4"]),
        (["objective.block=8"], ["objective.block is 8", "a key of bd3lm", "objective.name is card"]),
        (["objective.name=ar", "objective.resample=false"], ["objective.resample", "card and mdlm and bd3lm"]),
        (["objective.min_noise=0.6", "objective.max_noise=0.5"], ["objective.max_noise is 0.5", "from 0.6 to 1"]),
        (["train.save_every=20", "train.keep_every=50"], ["train.keep_every 50", "train.save_every 20", "multiple"]),
        (["train.steps=null"], ["train.steps", "data.epochs"]),
        (["parallel.recompute=selective", "train.compile=false"], ["parallel.recompute is selective", "none or full"]),
        (["train.global_batch=10", "train.micro_batch=4"], ["train.global_batch 10", "train.micro_batch 4"]),
    ],
)
def test_refusals_name_key_value_and_what_is_valid(file, overrides, words):
    message = refusal(file, overrides)
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["is empty"]),
        ("- 1\n- 2\n", ["holds list", "groups of keys"]),
        ("model: [1, 2\n", ["cannot be read"]),
        ("model: 3\n", ["model holds 3", "not keys"]),
        ("model:\n", ["model holds None", "not keys"]),
        ("3: {a: 1}\n", ["unknown group 3"]),
        ("model: {3: 1}\n", ["unknown key model.3"]),
        ("model: {layres: 1}\n", ["unknown key model.layres", "did you mean layers?"]),
        ("run: {dir: \0}\n", ["cannot be read"]),
        ("run: {seed: 1}\nrun: {dir: a}\n", ["cannot be read", "line 2 repeats the key run of line 1"]),
        ("train:\n  steps: 1\n  steps: 2\n", ["cannot be read", "line 3 repeats the key steps of line 2"]),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, text, words):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    message = refusal(path, [])
    for word in (str(path), *words):
        assert word in message, message


def test_a_path_that_is_no_file(tmp_path):
    assert "nothing.yaml does not exist" in refusal(tmp_path / "nothing.yaml", [])
    assert f"{tmp_path} cannot be read" in refusal(tmp_path, [])
    (tmp_path / "latin.yaml").write_bytes(b"run: {dir: caf\xe9}\n")
    assert "cannot be read" in refusal(tmp_path / "latin.yaml", [])


PATH = TEXT.filter(lambda text: not text.startswith("~"))  # which is the home directory
UNIT = st.floats(0.0, 1.0)
BELOW_ONE = st.floats(0.0, 1.0, exclude_max=True)
SIZE = st.integers(1, 4)


def model_configs(draw, parts: int, tensor: int, head_groups: int) -> ModelConfig:
    """A model whose layers and heads the layout divides."""
    kv_heads = tensor * head_groups
    heads = kv_heads * draw(st.integers(1, 3))
    return ModelConfig(
        layers=parts * draw(SIZE),
        hidden=heads * 2 * draw(SIZE),
        heads=heads,
        kv_heads=draw(st.sampled_from([None, kv_heads])),
        ffn=tensor * draw(st.integers(1, 1000)),
        length=tensor * draw(st.integers(2, 50)),
        tie_embeddings=draw(st.booleans()),
        rotary_base=draw(st.floats(1.5, 1e7)),
        norm_epsilon=draw(st.floats(1e-30, 1.0)),
        dropout=draw(BELOW_ONE),
        attention_backend=draw(st.sampled_from(["auto", "sdpa", "flex", "split", "dense"])),
    )


def objectives(draw, length: int) -> Objective:
    """An objective that trains on samples of ``length`` tokens."""
    low, high = sorted((draw(UNIT), draw(UNIT)))
    blocks = [block for block in range(1, length + 1) if length % block == 0]
    values = {
        "card": {
            "tail_factor": draw(st.floats(1.0, 1e6)),
            "decay": draw(UNIT),
            "beta": draw(st.floats(1e-6, 1e6)),
            "reweight": draw(st.booleans()),
            "masking": draw(st.sampled_from(["soft_tail", "uniform"])),
            "min_noise": low,
            "max_noise": high,
            "resample": draw(st.booleans()),
        },
        "ar": {},
        "mdlm": {"resample": draw(st.booleans())},
        "bd3lm": {"block": draw(st.sampled_from(blocks)), "max_mask": 1.0, "min_mask": low},
    }
    name = draw(st.sampled_from(sorted(values)))
    return registry.create(name, **values[name])


@st.composite
def configs(draw) -> Config:
    """A valid configuration."""
    tensor, pipeline = draw(SIZE), draw(SIZE)
    virtual = draw(SIZE) if pipeline > 1 else 1
    micro_batch, lr, save_every = draw(SIZE), draw(st.floats(1e-12, 10.0)), draw(st.integers(0, 100))
    model = model_configs(draw, pipeline * virtual, tensor, draw(SIZE))
    return Config(
        run=RunConfig(
            draw(PATH),
            draw(st.integers(0, 2**63 - 1)),
            draw(st.none() | PATH),
            timeout_seconds=draw(st.integers(1, 10**6)),
        ),
        model=model,
        objective=objectives(draw, model.length),
        data=DataConfig(
            path=draw(PATH),
            validation=draw(st.none() | PATH),
            validation_samples=draw(st.integers(0, 100)),
            unique_tokens=draw(st.none() | st.integers(model.length + 1, 10**12)),
            epochs=draw(st.none() | st.floats(1e-6, 1e6)),
            reshuffle=draw(st.booleans()),
        ),
        parallel=ParallelConfig(
            tensor=tensor,
            pipeline=pipeline,
            virtual_pipeline=virtual,
            sequence=tensor > 1 and draw(st.booleans()),
            engine=draw(st.sampled_from(["fsdp2", "deepspeed"])),
            zero=draw(st.sampled_from([None, 0, 1, 2, 3])),
            deepspeed=draw(st.none() | PATH),
            recompute=draw(st.sampled_from(["none", "selective", "full"])),
        ),
        optimizer=OptimizerConfig(
            lr=lr,
            min_lr=draw(st.floats(0.0, lr)),
            schedule=draw(st.sampled_from(["cosine", "wsd", "constant"])),
            warmup_steps=draw(st.integers(0, 10**6)),
            weight_decay=draw(st.floats(0.0, 10.0)),
            betas=(draw(BELOW_ONE), draw(BELOW_ONE)),
            eps=draw(st.floats(1e-30, 1.0)),
            clip=draw(st.floats(0.0, 1e6)),
            ema=draw(BELOW_ONE),
        ),
        train=TrainConfig(
            steps=draw(st.integers(1, 10**9)),
            global_batch=micro_batch * draw(st.integers(1, 100)),
            micro_batch=micro_batch,
            log_every=draw(st.integers(0, 100)),
            eval_every=draw(st.integers(0, 100)),
            save_every=save_every,
            keep_last=draw(st.sampled_from([0, 2, 100])),
            keep_every=save_every * draw(st.integers(0, 100)),
            precision=draw(st.sampled_from(["fp32", "bf16"])),
        ),
    )


@given(config=configs())
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back_unchanged(tmp_path_factory, config):
    config.check()
    path = tmp_path_factory.mktemp("round_trip") / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert load(path, []) == config


@given(
    key=st.sampled_from(KEYS),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
)
@settings(max_examples=200, deadline=None)
def test_any_value_is_taken_with_its_type_or_refused(tmp_path_factory, key, value):
    group, _, name = key.partition(".")
    tree = {section: dict(keys) for section, keys in BASE.items()}
    tree.setdefault(group, {})[name] = value
    path = tmp_path_factory.mktemp("any_value") / "config.yaml"
    path.write_text(yaml.safe_dump(tree, allow_unicode=False), encoding="utf-8")
    try:
        config = load(path, [])
    except ConfigurationError as refused:
        if name not in str(refused):
            raise
        return
    if key not in config.flat():  # another objective's, with its default
        assert key.startswith("objective.")
        return
    section = getattr(config, group)
    hint = typing.get_type_hints(type(section))[name]
    allowed = typing.get_args(hint) or (hint,)
    found = getattr(section, name)
    assert found in allowed or isinstance(found, tuple(one for one in (*allowed, tuple) if isinstance(one, type)))
