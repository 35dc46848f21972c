import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from card_scale.data.manifest import Manifest

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def built(tmp_path_factory, corpus):
    """A tokenizer and a dataset made from the command line."""
    directory = tmp_path_factory.mktemp("tools")
    made = tool("tokenizer", corpus, "--output", directory / "t.model", "--vocabulary-size", 400)
    assert made.returncode == 0, made.stderr
    made = tool("data", "build", corpus, "--tokenizer", directory / "t.model", "--output", directory / "data",
                "--validation-fraction", 0.25, "--workers", 1)  # fmt: skip
    assert made.returncode == 0, made.stderr
    return directory


@pytest.mark.parametrize("name, arguments", [
    ("tokenizer", []), ("data", []), ("data", ["build"]), ("data", ["verify"]), ("data", ["inspect"]),
    ("data", ["decontaminate"]), ("data", ["report"]), ("data", ["ledger"]),
    ("package_sources", []), ("bench_data", []), ("bench_data", ["build"]), ("bench_data", ["loader"]),
])  # fmt: skip
def test_help_imports_nothing_heavy(name, arguments):
    script = f"""
import runpy, sys
sys.argv = ["x", *{arguments!r}, "--help"]
try:
    runpy.run_path({str(ROOT / "tools" / f"{name}.py")!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print(sorted({{"torch", "numpy", "sentencepiece", "webdataset", "pyarrow"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
    assert done.stdout.endswith("[]\n")


def test_building_imports_no_torch():
    names = ("build", "verify", "summary", "decontamination", "dataset_report")
    modules = ", ".join(f"card_scale.corpus.{name}" for name in names)
    script = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_running_again_says_that_it_is_done(built, corpus):
    again = tool("tokenizer", corpus, "--output", built / "t.model", "--vocabulary-size", 400)
    assert (again.returncode, "already there" in again.stdout) == (0, True)
    again = tool("data", "build", corpus, "--tokenizer", built / "t.model", "--output", built / "data",
                 "--validation-fraction", 0.25)  # fmt: skip
    assert (again.returncode, "finished before" in again.stdout) == (0, True)


def test_a_build_ends_with_a_summary_of_what_is_in_it_and_what_is_not(built, tmp_path):
    for name in ("a.txt", "notes.md", "b.png", ".git/config"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("\n\n".join(f"paragraph {n} of {name}" for n in range(60)))
    done = tool("data", "build", tmp_path / "in", "--tokenizer", built / "t.model", "--output", tmp_path / "data",
                "--split-documents", 100, "--validation-fraction", 0.3)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out 0 empty, 0 null, 0 not UTF-8" in done.stdout
    words = "passed over: 1 hidden or backup directories (.git), 1 .md files, 1 .png files\n"
    assert done.stdout.endswith(words)
    trained = tool("tokenizer", tmp_path / "in", "--output", tmp_path / "t.model", "--vocabulary-size", 290)
    assert trained.stdout.endswith(words), trained.stderr
    assert re.search("warning: validation holds only .* documents with .* tokens, .* standard error", done.stderr)


def test_verify_and_inspect(built, texts):
    assert tool("data", "verify", built / "data").stdout.endswith("sound\n")
    shown = tool("data", "inspect", built / "data", "--documents", 3, "--samples", 2, "--length", 40).stdout
    assert "400 pieces, tokens stored as uint16" in shown
    assert "record 0" in shown
    assert "train sample 1 of" in shown
    first = shown.partition("train document 0: ")[2]
    number = int(first.partition(".txt")[0].rpartition("/")[2])
    assert texts[number][:400] in first


@pytest.mark.parametrize(
    "name, arguments, code, message",
    [
        ("data", ["build", "nowhere", "--tokenizer", "{t}", "--output", "{tmp}/d"], 4, "error: nowhere: no such file"),
        ("data", ["build", "{corpus}", "--tokenizer", "{tmp}/none", "--output", "{tmp}/d"], 4, "none: cannot read"),
        (
            "data",
            ["build", "{corpus}", "--tokenizer", "{t}", "--output", "{built}", "--workers", "1"],
            4,
            "made otherwise",
        ),
        (
            "data",
            ["build", "{corpus}", "--tokenizer", "{t}", "--output", "{tmp}", "--validation-fraction", "1"],
            2,
            "below 1",
        ),
        ("data", ["build", "{corpus}"], 2, "--output"),
        ("data", ["verify", "{tmp}"], 4, "manifest.json: no such file"),
        ("data", ["inspect", "{tmp}"], 4, "manifest.json: no such file"),
        (
            "data",
            ["build", "{corpus}", "--tokenizer", "{t}", "--output", "{tmp}/d", "--validation-fraction", "0"]
            + ["--decontaminate"],
            2,
            "--validation-fraction above 0",
        ),
        ("data", ["decontaminate", "{tmp}"], 4, "manifest.json: no such file"),
        ("data", ["decontaminate", "{built}", "--against", "{tmp}"], 4, "manifest.json: no such file"),
        ("data", ["decontaminate", "{built}", "--threshold", "0"], 2, "above 0"),
        ("data", ["report", "{tmp}"], 4, "manifest.json: no such file"),
        ("data", [], 2, "command"),
        (
            "tokenizer",
            ["{corpus}", "--output", "{tmp}/t", "--vocabulary-size", "99999"],
            4,
            "is more than",
        ),
        ("tokenizer", ["{corpus}", "--output", "/proc/x/t", "--vocabulary-size", "400"], 4, "error: "),
        ("bench_data", ["loader", "{tmp}"], 4, "manifest.json: no such file"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(built, corpus, tmp_path, name, arguments, code, message):
    names = {"t": built / "t.model", "tmp": tmp_path, "corpus": corpus, "built": built / "data"}
    done = tool(name, *(argument.format(**names) for argument in arguments))
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_decontaminate_and_report(built, corpus, tmp_path):
    dataset = tmp_path / "data"
    command = ("data", "build", corpus, "--tokenizer", built / "t.model", "--output", dataset,
               "--validation-fraction", 0.25, "--workers", 1)  # fmt: skip
    assert "not decontaminated" in tool(*command).stdout
    shown = tool("data", "report", dataset, "--workers", 1).stdout
    assert "not decontaminated" in shown
    assert "near duplicates in train: " in shown
    done = tool(*command, "--decontaminate")  # of a dataset that was finished before
    assert (done.returncode, "against its own train" in done.stdout) == (0, True), done.stderr
    own = Manifest.load(dataset)
    arguments = ("data", "decontaminate", dataset, "--ngram", 2, "--threshold", 1, "--workers", 1)
    done = tool(*arguments, "--against", built / "data", "--against", dataset)
    assert done.returncode == 0, done.stderr
    record = Manifest.load(dataset).decontamination
    assert (record.ngram, record.threshold, len(record.against)) == (2, 1.0, 2)
    assert f"{record.excluded_documents} of {own.splits['validation'].documents} validation documents" in done.stdout
    done = tool("data", "report", dataset, "--against", built / "data", "--sample", 5, "--workers", 1,
                "--json", tmp_path / "r.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"of train of {built / 'data'}" in done.stdout
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["decontamination"] == json.loads((dataset / "manifest.json").read_text())["decontamination"]
    assert written["near_duplicates"]["train"] is None
    rate = written["near_duplicates"]["validation"]
    assert (rate["documents"], rate["sampled"]) == (own.splits["validation"].documents - record.excluded_documents, 5)
    assert f"{rate['share']:.2%}" in done.stdout
    excluded = set(np.load(dataset / record.excluded.name).tolist())
    assert excluded
    shown = tool("data", "inspect", dataset, "--split", "validation", "--documents", 99).stdout
    marked = [line for line in shown.splitlines() if line.startswith("--- validation document")]
    assert {number for number, line in enumerate(marked) if line.endswith("excluded as contaminated")} == excluded


def test_verify_lists_the_damage(built):
    shard = next((built / "data").glob("train-*.tar"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-1])
        done = tool("data", "verify", built / "data")
    finally:
        shard.write_bytes(content)
    assert done.returncode == 4
    assert f"{shard}: {len(content) - 1} bytes, expected {len(content)}" in done.stdout
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_stopped_build_says_so_and_goes_on(texts, tokenizer_path, tmp_path, workers, signal_number):
    (tmp_path / "in").mkdir()
    for number in range(50):
        (tmp_path / "in" / f"{number}.txt").write_text("\n".join(texts) + str(number))
    command = [sys.executable, str(ROOT / "tools" / "data.py"), "build", str(tmp_path / "in"), "--unit-bytes", "100000"]
    command += ["--workers", str(workers), "--tokenizer", str(tokenizer_path), "--output", str(tmp_path / "data")]
    command += ["--validation-fraction", "0.2"]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("data/build/unit-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    if signal_number == signal.SIGINT:
        os.killpg(process.pid, signal_number)  # as a terminal does
    else:
        process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 75, errors
    *progress, last = errors.splitlines()
    assert last.startswith("stopped: ")
    assert "run the same command again" in last
    assert all(line.startswith("build: ") for line in progress)  # where the machine is slow
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    assert "units were finished by an earlier call" in done.stdout
    assert tool("data", "verify", tmp_path / "data").returncode == 0


def test_the_benchmarks_report_their_ratios(built, corpus, tmp_path):
    done = tool("bench_data", "build", corpus, "--tokenizer", built / "t.model", "--workers", 1, "--rounds", 1,
                "--json", tmp_path / "b.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "b.json").read_text())
    assert result["build"]["ratio"] == result["build"]["bare_seconds"][0] / result["build"]["build_seconds"][0]
    assert {"device", "cpus", "versions", "commit", "command"} <= set(result["environment"])
    done = tool("bench_data", "loader", built / "data", "--length", 32, "--steps", 5, "--consumption", 100,
                "--json", tmp_path / "l.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "l.json").read_text())["loader"]
    assert result["ratio"] == result["tokens_per_second"] / 100
    assert f"{result['ratio']:.1f}" in done.stdout
