"""Wrong input of every kind: a message that names file or key, value and what would be valid; a documented exit code;
before any process group forms."""

import itertools
import json
import shutil
import subprocess
import sys

import pytest
import torch.distributed as dist
import yaml

from card_scale.errors import ExitCode
from card_scale.train import main

CASES = {
    "unknown key": (["train.stepz=3"], 3, ["train.stepz", "steps"]),
    "unknown group": (["trian.steps=3"], 3, ["trian", "train"]),
    "no YAML": (["train.steps=["], 3, ["train.steps", "'['", "not a YAML value"]),
    "run directory below a file": (["run.dir=/dev/null/run"], 3, ["run.dir /dev/null/run", "/dev/null is a file"]),
    "wrong type": (["train.steps=many"], 3, ["train.steps", "'many'", "whole number"]),
    "wrong choice": (["objective.name=bert"], 3, ["objective.name", "'bert'", "card, ar"]),
    "out of range": (["objective.tail_factor=0.5"], 3, ["objective.tail_factor", "0.5", "at least 1"]),
    "heads do not divide": (["model.heads=5"], 3, ["model.hidden 32", "model.heads 5"]),
    "layers do not divide": (["parallel.pipeline=3"], 3, ["model.layers 2", "parallel.pipeline 3"]),
    "world too small": (["parallel.tensor=2"], 3, ["1 ranks", "parallel.tensor 2"]),
    "batch does not divide": (["train.micro_batch=3"], 3, ["train.global_batch 8", "train.micro_batch 3"]),
    "steps against epochs": (["data.epochs=2"], 3, ["train.steps is 6", "data.epochs 2"]),
    "engine against stage": (["parallel.engine=fsdp2", "parallel.zero=1"], 3, ["parallel.zero is 1", "fsdp2"]),
    "no dataset": (["data.path=nowhere"], 4, ["nowhere"]),
    "more unique tokens than there are": (["data.unique_tokens=1000000000"], 3, ["1000000000", "has"]),
}

BD3LM = "objective.name=bd3lm"
MASKED_DIFFUSION = {
    "block does not divide the length": (
        [BD3LM, "objective.block=16"],
        ["objective.block 16", "model.length 24", "valid: 1, 2, 3, 4, 6, 8, 12, 24"],
    ),
    "block of nothing": ([BD3LM, "objective.block=0"], ["objective.block is 0", "at least 1"]),
    "interval below 0": ([BD3LM, "objective.min_mask=-0.1"], ["objective.min_mask is -0.1", "from 0 to 1"]),
    "interval above 1": ([BD3LM, "objective.max_mask=1.1"], ["objective.max_mask is 1.1", "from 0.001 to 1"]),
    "no masks at all": ([BD3LM, "objective.max_mask=0"], ["objective.max_mask is 0.0", "from 0.001 to 1"]),
    "ends exchanged": (
        [BD3LM, "objective.block=8", "objective.min_mask=0.6", "objective.max_mask=0.5"],
        ["objective.max_mask is 0.5", "from 0.6 to 1"],
    ),
    "no whole number of masks": (
        [BD3LM, "objective.block=4", "objective.min_mask=0.3", "objective.max_mask=0.4"],
        ["objective.min_mask 0.3", "objective.max_mask 0.4", "objective.block 4", "widen"],
    ),
    "only blocks without masks": (
        [BD3LM, "objective.block=4", "objective.max_mask=0.2"],
        ["objective.max_mask 0.2", "objective.block 4", "widen"],
    ),
    "search with blocks of one token": (
        [BD3LM, "objective.block=1", "objective.search_interval=true"],
        ["objective.search_interval", "objective.block 1"],
    ),
    "a key of another objective": (
        ["objective.block=8"],
        ["objective.block is 8", "a key of bd3lm", "objective.name is card"],
    ),
}
WITH_THE_DEVICE = {
    "backend of another objective": (
        [BD3LM, "objective.block=8", "model.attention_backend=sdpa"],
        ["model.attention_backend is sdpa", "block diffusion", "auto, split, dense"],
    ),
    "backend of block diffusion": (
        ["objective.name=mdlm", "model.attention_backend=split"],
        ["model.attention_backend is split", "bidirectional", "auto, sdpa, dense"],
    ),
    "backend that a CPU has not": (
        [BD3LM, "objective.block=8", "model.attention_backend=flex"],
        ["model.attention_backend is flex", "cpu", "no backward pass", "auto, split, dense"],
    ),
}
"""Refused with the device in hand, so not by ``--print-config``, which asks for none."""


@pytest.mark.parametrize(
    "case, option",
    [
        *itertools.product(MASKED_DIFFUSION, ("", "--dry-run", "--print-config")),
        *itertools.product(WITH_THE_DEVICE, ("", "--dry-run")),
    ],
)
def test_masked_diffusion_is_refused_before_a_process_group_forms(case, option, config_file, capsys):
    overrides, words = {**MASKED_DIFFUSION, **WITH_THE_DEVICE}[case]
    assert main([str(config_file), *filter(None, [option]), *overrides]) == ExitCode.CONFIGURATION
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert all(word in message for word in words), message
    assert not dist.is_initialized()


@pytest.mark.parametrize("case", CASES)
def test_refused_before_a_process_group_forms(case, config_file, capsys):
    overrides, code, words = CASES[case]
    assert main([str(config_file), *overrides]) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert all(word in message for word in words), message
    assert "Traceback" not in message
    assert not dist.is_initialized()


@pytest.fixture
def damaged(tmp_path, dataset):
    """A private copy of the dataset."""
    return shutil.copytree(dataset, tmp_path / "damaged")


def refusal(config_file, capsys, *overrides) -> str:
    assert main([str(config_file), *overrides]) == ExitCode.DATA
    message = capsys.readouterr().err
    assert not dist.is_initialized()
    return message


def test_a_missing_shard(config_file, damaged, capsys):
    shard = next(damaged.glob("train-*.tar"))
    shard.unlink()
    assert shard.name in refusal(config_file, capsys, f"data.path={damaged}")


def test_a_truncated_shard(config_file, damaged, capsys):
    shard = next(damaged.glob("validation-*.tar"))
    size = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(size - 512)
    message = refusal(config_file, capsys, f"data.path={damaged}")
    assert shard.name in message
    assert str(size) in message


def test_a_tokenizer_that_does_not_match_the_shards(config_file, damaged, other_dataset, capsys):
    shutil.copyfile(other_dataset / "tokenizer.model", damaged / "tokenizer.model")
    assert "tokenizer.model" in refusal(config_file, capsys, f"data.path={damaged}")


def test_validation_data_of_another_tokenizer(config_file, other_dataset, capsys):
    assert "another tokenizer" in refusal(config_file, capsys, f"data.validation={other_dataset}")


def test_a_run_directory_of_another_configuration(config_file, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    tree = yaml.safe_load(config_file.read_text())
    tree["model"]["layers"] = 8
    (run / "config.yaml").write_text(yaml.safe_dump(tree))
    (run / "exit.json").write_text('{"code": 0, "reason": "the other run is done"}')
    for option in ([], ["--dry-run"]):
        assert main([str(config_file), *option]) == ExitCode.CONFIGURATION
        message = capsys.readouterr().err
        assert "model.layers is 2, the run there has 8" in message
        assert str(run) in message
        assert json.loads((run / "exit.json").read_text())["code"] == 0


THREE_TENSOR_RANKS = ["parallel.tensor=3", "model.heads=3", "model.hidden=48", "model.ffn=48"]


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_vocabulary_that_the_ranks_cannot_share(config_file, tmp_path, monkeypatch, capsys, option):
    for name, value in {"RANK": "0", "WORLD_SIZE": "3", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main([str(config_file), *THREE_TENSOR_RANKS, "train.global_batch=6", *option]) == ExitCode.CONFIGURATION
    assert "not divisible by parallel.tensor 3; valid up to it: 1, 2" in capsys.readouterr().err
    assert not dist.is_initialized()
    assert (tmp_path / "run/exit.json").is_file() == (not option)  # a dry run leaves nothing


@pytest.mark.parametrize("mistake", ["model.layer=3", "model.heads=3", "model.layers=none"])
def test_a_refused_configuration_is_no_success_of_an_earlier_command(config_file, tmp_path, mistake):
    """torchrun returns 1 for any code, so a script reads the record."""
    record = tmp_path / "run/exit.json"
    assert main([str(config_file), mistake]) == ExitCode.CONFIGURATION
    assert not record.exists()  # the directory may be that of a run that goes on
    record.parent.mkdir()
    record.write_text('{"code": 0, "reason": "done: 6 steps"}')
    elsewhere = f"run.dir={tmp_path / 'elsewhere'}"
    assert main([str(config_file), mistake, elsewhere]) == ExitCode.CONFIGURATION
    assert json.loads(record.read_text())["code"] == 0
    assert main([str(config_file), mistake]) == ExitCode.CONFIGURATION
    refused = json.loads(record.read_text())
    assert refused["code"] == ExitCode.CONFIGURATION
    assert mistake.partition("=")[0] in refused["reason"]


@pytest.mark.parametrize(
    "content, words",
    [("model: [1, 2", "cannot be read"), ("- a\n- b", "not groups of keys"), ("model: 3", "model holds 3")],
)
def test_a_file_that_is_no_configuration(tmp_path, content, words, capsys):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    assert main([str(path)]) == ExitCode.CONFIGURATION
    message = capsys.readouterr().err
    assert str(path) in message
    assert words in message


def test_a_missing_configuration_file(capsys):
    assert main(["nowhere.yaml"]) == ExitCode.CONFIGURATION
    assert "nowhere.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--seed", "5"], ["--seed=5"], ["--bf16"]])
def test_an_option_before_the_configuration_file(option, config_file, capsys):
    """Its value must not pass for the file."""
    with pytest.raises(SystemExit) as ended:
        main([*option, str(config_file)])
    assert ended.value.code == ExitCode.COMMAND_LINE
    assert f"{option[0]} stands before the configuration file" in capsys.readouterr().err


def test_options_after_the_configuration_file(config_file, capsys):
    given = ["--print-config", str(config_file), "--tensor-model-parallel-size", "2", "--seed=5", "train.steps=9"]
    assert main(given) == ExitCode.DONE
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert (resolved["parallel"]["tensor"], resolved["run"]["seed"], resolved["train"]["steps"]) == (2, 5, 9)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--dry"], ["unknown option --dry", "did you mean --dry-run?"]),
        (["--dryrun"], ["unknown option --dryrun", "did you mean --dry-run?"]),
        (["--tensor-modle-parallel-size", "2"], ["did you mean --tensor-model-parallel-size?"]),
        (["train.steps", "5"], ["'train.steps'", "group.key=value"]),
        (["--tokens-per-second", "5"], ["--tokens-per-second belongs to --dry-run"]),
        (["--help", "optimizer.rl"], ["there is no key 'optimizer.rl'", "did you mean optimizer.lr?"]),
    ],
)
def test_what_is_no_argument_ends_with_the_usage(arguments, words, config_file, capsys):
    with pytest.raises(SystemExit) as ended:
        main([str(config_file), *arguments])
    assert ended.value.code == ExitCode.COMMAND_LINE == 2
    message = capsys.readouterr().err
    assert message.startswith("usage: ")
    assert all(word in message for word in words), message


def test_help_of_a_key_says_what_the_page_says(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help", "optimizer.lr"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("optimizer.lr", "0.0003", "Peak learning rate.", "--lr")), said


@pytest.mark.parametrize("option", ["--dry-run", "--print-config"])
def test_a_reader_that_goes_away_is_no_error(option, config_file):
    shell = f"set -o pipefail; {sys.executable} -m card_scale.train {config_file} {option} | head -n 1"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert len(ended.stdout.splitlines()) == 1
    assert not ended.stderr


def test_print_config_is_a_configuration(config_file, capsys, tmp_path):
    assert main([str(config_file), "--print-config", "train.steps=9"]) == 0
    resolved = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(resolved)
    assert main([str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == resolved
    assert yaml.safe_load(resolved)["train"]["steps"] == 9


def test_help_and_wrong_command_line_answer_without_torch():
    blocked = "import sys; sys.modules['torch'] = None; from card_scale.train import main; sys.exit(main({}))"
    helped = subprocess.run([sys.executable, "-c", blocked.format("['--help']")], capture_output=True, text=True)
    assert helped.returncode == 0
    assert "Exit codes" in helped.stdout
    nothing = subprocess.run([sys.executable, "-c", blocked.format("[]")], capture_output=True, text=True)
    assert nothing.returncode == ExitCode.COMMAND_LINE


def test_a_deepspeed_file_that_contradicts_the_run(config_file, tmp_path, capsys):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 1}, "gradient_clipping": "auto"}))
    assert main([str(config_file), f"parallel.deepspeed={path}"]) == ExitCode.CONFIGURATION
    message = capsys.readouterr().err
    assert all(words in message for words in (str(path), "zero_optimization.stage is 1", "parallel.zero is 3"))
    assert not dist.is_initialized()
