"""From a trained checkpoint to text, to a Hugging Face folder and back into training, as a user goes."""

import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from card_scale import config as configs
from card_scale.errors import CardScaleError
from card_scale.generation import load
from card_scale.generation.perplexity import dataset_perplexity
from card_scale.training import initial_weights, run_data
from tests.end_to_end.conftest import write_config
from tests.end_to_end.test_train import records, train
from tests.layouts.processes import run_ranks

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, dataset):
    """A run of two pipeline stages with sequence-parallel pairs; returns (configuration, run directory)."""
    root = tmp_path_factory.mktemp("trained")
    path = write_config(root, dataset)
    layout = ["parallel.pipeline=2", "parallel.tensor=2", "parallel.sequence=true", "train.steps=4"]
    assert run_ranks(train, 4, [str(path), *layout], deadline=120) == [0] * 4
    return path, root / "run"


@pytest.fixture(scope="module")
def checkpoint(trained):
    return trained[1] / "checkpoints/iter_0000004"


@pytest.fixture
def tool(monkeypatch, capsys):
    """Function that runs a tool in this process; returns (exit code, what it printed, what it complained of)."""

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return run


def likelihood(model, dataset) -> float:
    return list(dataset_perplexity(model, dataset, "validation", samples=5, batch=5, draws=1))[-1].nats_per_token


def test_the_loaded_model_has_the_likelihood_that_training_recorded(trained, checkpoint, dataset):
    recorded = records(trained[1])[1][-1]
    assert likelihood(load(checkpoint), dataset) == pytest.approx(recorded["validation_nll"], rel=1e-5)
    averaged = likelihood(load(checkpoint, ema=True), dataset)
    assert averaged == pytest.approx(recorded["ema/validation_nll"], rel=1e-5)


def test_a_new_run_starts_from_the_weights_even_by_way_of_another_format(trained, checkpoint, dataset, tmp_path, tool):
    expected = likelihood(load(checkpoint), dataset)
    assert tool("checkpoint", "export", checkpoint, tmp_path / "folder")[0] == 0
    code, printed, _ = tool("checkpoint", "import", tmp_path / "folder", tmp_path / "imported")
    assert code == 0
    assert f"run.init_from={tmp_path / 'imported'}" in printed
    for number, (source, layout) in enumerate(
        [(checkpoint, ["parallel.engine=fsdp2", "parallel.zero=null"]), (tmp_path / "imported", ["parallel.tensor=2"])]
    ):
        run = tmp_path / f"run{number}"
        start = [str(trained[0]), f"run.dir={run}", f"run.init_from={source}", "train.steps=1", *layout]
        assert run_ranks(train, 2, start, deadline=120) == [0, 0]
        assert records(run)[1][0]["validation_nll"] == pytest.approx(expected, rel=1e-5)


def test_a_finished_run_is_extended(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "run")
    longer = [str(trained[0]), f"run.dir={tmp_path / 'run'}", "train.steps=6"]
    assert run_ranks(train, 1, longer, deadline=120) == [3]
    assert run_ranks(train, 1, [*longer, "run.extend=true"], deadline=120) == [0]
    training = records(tmp_path / "run")[0]
    assert [record["step"] for record in training] == [1, 2, 3, 4, 5, 6]
    # The rate is that of a cosine over six steps.
    assert training[4]["lr"] > training[5]["lr"] > 0


def test_weights_that_do_not_fit_are_refused(trained, checkpoint, other_dataset, tmp_path):
    cases = {
        f"run.init_from={tmp_path / 'nothing'}": (5, "there is no such directory"),
        f"run.init_from={trained[1]}": (5, f"holds checkpoints; give one of them: {checkpoint}"),
        f"run.init_from={checkpoint} model.layers=4": (5, "model.layers is 2 there, here 4"),
        f"run.init_from={checkpoint} model.heads=2": (5, "model.heads is 4 there, here 2"),
        f"run.init_from={checkpoint} model.rotary_base=500": (5, "model.rotary_base is 10000.0 there, here 500"),
        f"run.init_from={checkpoint} data.path={other_dataset}": (4, "build the data with the checkpoint's tokenizer"),
        f"run.init_from={checkpoint} model.ffn=64": (5, "is of another model: model.ffn is 48 there, here 64"),
    }
    for overrides, (code, words) in cases.items():
        config = configs.load(trained[0], overrides.split())
        with pytest.raises(CardScaleError, match=re.escape(words)) as refused:
            initial_weights.find(config, run_data.open_data(config))
        assert refused.value.exit_code == code
    damaged = shutil.copytree(checkpoint, tmp_path / "damaged/iter_0000004")
    weights = next((damaged / "model").iterdir())
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    start = [str(trained[0]), f"run.dir={tmp_path / 'new'}", f"run.init_from={damaged}"]
    assert run_ranks(train, 2, start, deadline=120) == [5] * 2
    assert f"model/{weights.name} is damaged" in json.loads((tmp_path / "new/exit.json").read_text())["reason"]
    # The whole command says so too, of the last of them.
    assert run_ranks(train, 1, [str(trained[0]), f"run.dir={tmp_path}", *overrides.split()], deadline=120) == [code]
    assert words in json.loads((tmp_path / "exit.json").read_text())["reason"]


def test_generate_prints_text_and_says_what_it_cost(checkpoint, tool):
    code, text, said = tool("generate", checkpoint, "--prompt", "def", "--tokens", 12, "--through-end")
    assert code == 0
    assert text.startswith("def")
    assert "12 tokens in" in said
    code, plain, _ = tool("generate", checkpoint, "--prompt", "def", "--tokens", 12, "--through-end", "--method", "ar")
    assert plain == text
    code, coloured, _ = tool("generate", checkpoint, "--prompt", "def", "--tokens", 12, "--through-end", "--colour")
    assert "\x1b[" in coloured
    assert "".join(part.partition("m")[2] for part in ("m" + coloured).split("\x1b[")) == text


@pytest.mark.parametrize("option", ["--top-p 0.5", "--top-k 3"])
def test_what_says_nothing_without_sampling_is_refused(checkpoint, tool, option):
    code, _, said = tool("generate", checkpoint, "--prompt", "x", *option.split())
    assert code == 2
    assert f"{option.split()[0]} says nothing to --temperature 0" in said


def test_generate_writes_one_object_a_prompt(checkpoint, tool, tmp_path):
    (tmp_path / "prompt.txt").write_text("class value:\n")
    options = ["--tokens", 8, "--temperature", 1, "--seed", 3, "--json", "--through-end"]
    code, printed, said = tool("generate", checkpoint, "--prompt", "def", "--file", tmp_path / "prompt.txt", *options)
    assert (code, said) == (0, "")
    first, second = map(json.loads, printed.splitlines())
    assert (first["prompt"], second["prompt"]) == ("def", "class value:\n")
    for one in (first, second):
        assert len(one["tokens"]) == 8
        assert 1 <= one["passes"] <= 8
        assert one["seconds"] > 0
        assert one["text"] == load(checkpoint).tokenizer.decode(one["tokens"])


def test_a_stop_ends_the_text_alike_in_both_forms(checkpoint, tool):
    options = ["--prompt", "def", "--tokens", 15, "--through-end", "--temperature", 1, "--seed", 5]
    whole = json.loads(tool("generate", checkpoint, *options, "--json")[1])["text"]
    stop = whole[len(whole) // 2 :][:2]
    expected = whole[: whole.index(stop)]
    assert json.loads(tool("generate", checkpoint, *options, "--json", "--stop", stop)[1])["text"] == expected
    assert tool("generate", checkpoint, *options, "--stop", stop)[1] == f"def{expected}\n\n"
    assert tool("generate", checkpoint, *options, "--stop", "not there at all")[1] == f"def{whole}\n\n"


def test_a_reader_that_has_seen_enough_ends_it_quietly(checkpoint):
    command = [sys.executable, str(TOOLS / "generate.py"), str(checkpoint), "--prompt", "def", "--tokens", "20"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, "Broken pipe" in said, "Traceback" in said) == (0, False, False)


def test_a_run_directory_is_answered_with_its_newest_checkpoint(trained, checkpoint, tool):
    code, _, said = tool("generate", trained[1])
    assert code == 5
    assert f"holds checkpoints; give one of them: {checkpoint}" in said


def test_another_tokenizer_is_refused_before_anything_is_measured(checkpoint, dataset, other_dataset, tool):
    for name, more in (("decode_sweep", []), ("evaluate", ["--data", dataset])):
        code, text, said = tool(name, checkpoint, *more, "--data", other_dataset)
        assert (code, text) == (4, "")
        assert "build it with the checkpoint's tokenizer" in said


def test_generate_answers_line_by_line(checkpoint, tool, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"def\n{'def ' * 60}\nimport\n"))
    code, text, said = tool("generate", checkpoint, "--interactive", "--tokens", 5)
    assert code == 0
    assert text.startswith("def")
    assert "\nimport" in text
    assert said.count("a second") == 2
    assert said.count("leaves no room") == 1, "a line that does not fit does not end the session"


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--drafts", "0"], 2, "--drafts: 0 is not at least 1"),
        (["--tau", "-1"], 2, "-1 is not a finite number of at least 0"),
        (["--interactive", "--prompt", "x"], 2, "leave out --prompt"),
        (["--method", "card", "--blocks", "--tau", "1.5"], 3, "tau is 1.5; valid is a probability from 0 to 1"),
        (["--method", "mdlm"], 3, "method mdlm does not decode a model trained with objective.name card"),
        (["--tokens", "24"], 3, "more than the model's length 24"),
        (["--prompt", "def " * 50], 3, "leaves no room in the model's length 24"),
        (["--file", "/nowhere"], 4, "No such file"),
        (["--file", sys.executable], 4, "is no UTF-8 text"),
        (["--prompt", "half \udcf0"], 4, "the prompt is no valid text at character 5"),
        (["--device", "nonsense"], 3, "device is 'nonsense'; valid are cpu, cuda and cuda:N"),
        (["--device", "mps"], 3, "device is 'mps'; valid are cpu"),
        (["--device", "cuda:99"], 3, "device is 'cuda:99', and torch sees"),
        (["--tau", "0.5"], 3, "--tau says nothing to --method self_verified; it is an option of card"),
        (
            ["--method", "card", "--leniency", "0.5"],
            3,
            "--leniency says nothing to --method card; it is an option of self_",
        ),
        (["--method", "ar", "--blocks"], 3, "--blocks says nothing to --method ar; it is an option of card"),
        (["--drafts", "1000"], 3, "drafts (K) is 1000; valid is from 1 to 128"),
    ],
)
def test_what_generate_refuses_is_one_clear_line(checkpoint, tool, arguments, code, words):
    found, _, said = tool("generate", checkpoint, *arguments)
    assert found == code
    assert words in said
    assert "Traceback" not in said


def test_no_checkpoint_is_one_clear_line(tool, tmp_path):
    for name, more in (("generate", []), ("evaluate", ["--data", tmp_path])):
        code, _, said = tool(name, tmp_path / "iter_0000001", *more)
        assert code == 5
        assert said.strip().endswith("there is no such directory")


def test_evaluate_says_exact_and_writes_what_it_found(checkpoint, dataset, tool, tmp_path, monkeypatch):
    out = tmp_path / "results.json"
    code, text, _ = tool("evaluate", checkpoint, "--ema", "--data", dataset, "--samples", 5, "--output", out)
    assert code == 0
    assert text.strip().endswith("exact")
    found = json.loads(out.read_text())["datasets"][str(dataset)]
    assert found["nats_per_token"] == pytest.approx(likelihood(load(checkpoint, ema=True), dataset))
    assert tool("evaluate", checkpoint)[0] == 2
    # The harness's own tasks take ten seconds to be listed.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_options: types.SimpleNamespace(all_tasks=["arc"]))
    code, _, said = tool("evaluate", checkpoint, "--tasks", "arc, no_such_task")
    assert (code, "--tasks no_such_task: no such task" in said) == (3, True)


@pytest.mark.parametrize("name", ["generate", "evaluate", "checkpoint"])
def test_help_answers_without_torch(name):
    script = f"""
import runpy, sys
sys.argv = ["x", "--help"]
try:
    runpy.run_path({str(TOOLS / f"{name}.py")!r}, run_name="__main__")
except SystemExit:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_the_default_type_is_float32_on_a_cpu(checkpoint):
    assert load(checkpoint).embedding.weight.dtype == torch.float32
