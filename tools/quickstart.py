#!/usr/bin/env python3
"""From nothing to a trained model: corpus, tokenizer, shards, a CARD run on four ranks, and what was learnt.

Every step goes on where an interrupted one stopped; a finished quickstart says so.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from card_scale.errors import ExitCode
from card_scale.files import read_json

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "launchers/configs/quickstart.yaml"
RUN = ROOT / "runs/quickstart"
DATA = ROOT / "data/quickstart"
VOCABULARY = 4096
RANKS = 4
SAMPLE_TOKENS, SAMPLE_TEMPERATURE = 60, 0.7


def main() -> int:
    """Run the quickstart; return its exit code."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    started, was_done = time.monotonic(), is_done()
    ranks, overrides = ranks_here()
    corpus = sysconfig.get_paths()["stdlib"]
    inputs = [corpus, "--glob", "*.py", "--exclude", "*site-packages*", "--skip-invalid"]
    tokenizer = str(DATA / "tokenizer.model")
    steps = [
        (
            f"tokenizer: {VOCABULARY} pieces from {corpus}",
            [sys.executable, "tools/tokenizer.py", *inputs, "--output", tokenizer]
            + ["--vocabulary-size", str(VOCABULARY), "--sample-bytes", "10000000"],
        ),
        (
            "dataset: tokenised documents in tar shards",
            [sys.executable, "tools/data.py", "build", *inputs, "--output", str(DATA / "tokens")]
            + ["--tokenizer", tokenizer, "--validation-fraction", "0.02"],
        ),
        (
            f"training on {ranks} ranks: DeepSpeed ZeRO-3 under pipeline stages",
            ["launchers/torchrun_one_node.sh", "--nproc", str(ranks), CONFIG, *overrides],
        ),
    ]
    for number, (title, command) in enumerate(steps, start=1):
        print(f"\n[{number}/{len(steps)}] {title}\n    {' '.join(_short(command))}", flush=True)
        code = _run(command)
        if code:
            return code
    print(closing_screen(None if was_done else time.monotonic() - started))
    return ExitCode.DONE


def _short(command: list[str]) -> list[str]:
    """Return the command as a user in the repository would type it."""
    return ["python" if part == sys.executable else part.replace(f"{ROOT}/", "") for part in command]


def ranks_here() -> tuple[int, list[str]]:
    """Return (ranks, overrides) for this machine: four on CPU or on four GPUs; fewer GPUs, fewer ranks."""
    import torch

    gpus = torch.cuda.device_count()
    if gpus == 0 or gpus >= RANKS:
        return RANKS, []
    return (2, []) if gpus > 1 else (1, ["parallel.pipeline=1"])


def _run(command: list[str]) -> int:
    """Run a step, with this interpreter's programs before all others, and return its exit code."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)))
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PATH": path, "VIRTUAL_ENV": sys.prefix})
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal has interrupted the step as well; it saves and ends by itself.
            continue


def is_done() -> bool:
    """Whether a quickstart has ended here before."""
    exit_file = RUN / "exit.json"
    return exit_file.is_file() and read_json(exit_file)["code"] == ExitCode.DONE


def closing_screen(seconds: float | None) -> str:
    """Return what was learnt and where to look, from the run's own records; ``seconds`` unless it was done before."""
    # numpy and the data layer only now: --help must answer at once.
    from card_scale import config as configs
    from card_scale.corpus.entropy import unigram_entropy
    from card_scale.data.order import evaluated_samples
    from card_scale.data.stream import PackedStream
    from card_scale.training.records import evaluations_of, read_metrics

    config = configs.load(RUN / "config.yaml", [])
    held_out = PackedStream(ROOT / config.data.path, "validation", config.run.seed, config.model.length)
    evaluated = held_out.samples(
        evaluated_samples("validation", config.data.validation_samples or None, held_out.sample_count)
    )
    entropy = unigram_entropy(evaluated[:, 1:])
    records = read_metrics(RUN / "metrics.jsonl")
    evaluations = evaluations_of(records)
    training = [record for record in records if "loss" in record]
    first, last = evaluations[0], evaluations[-1]
    bin_directory = Path(sys.executable).parent
    noisy = ", ".join(
        f"{key.rpartition('_')[2]}: {value:.2f}"
        for key, value in last.items()
        if key.startswith("card/validation_nll_noise_")
    )
    masked = ", ".join(f"{value:.2f}" for key, value in last.items() if key.startswith("card/validation_nll_masked_"))
    checkpoint = f"{_relative(RUN / 'checkpoints')}/iter_{training[-1]['step']:07d}"
    written = sample(ROOT / checkpoint).replace("\n", "\n" + " " * 29)
    took = "" if seconds is None else f"; this took {seconds:.0f} s"
    return f"""
The model has read {training[-1]["tokens"]:,} tokens in {training[-1]["step"]} steps{took}.

  Held-out files, nats per token
    before training          {first["validation_nll"]:.3f}
    unigram entropy          {entropy:.3f}   what knowing only each token's frequency gives
    after training, clean    {last["validation_nll"]:.3f}   perplexity {last["validation_perplexity"]:.1f}
    by noise level           {noisy}
    k-th token of a block    {masked}   (k = 1 ... 8, after k - 1 masks: parallel decoding)

  What it writes             {written}

  More of it                 {_relative(bin_directory / "python")} tools/generate.py {checkpoint} \\
                               --prompt "def " --colour
  Look at the curves         {_relative(bin_directory / "tensorboard")} --logdir {_relative(RUN)}
  The numbers                {_relative(RUN / "metrics.jsonl")}
  The last checkpoint        {checkpoint}
  The same with plain AR     launchers/torchrun_one_node.sh --nproc {RANKS} {CONFIG} \\
                               run.dir=runs/ar objective.name=ar
"""


def sample(checkpoint: Path) -> str:
    """Return a few lines that the model writes, and how many passes they took."""
    from card_scale.generation import generate, load
    from card_scale.generation.text import prompt_tokens

    model = load(checkpoint)
    prompt = "def "
    (one,) = generate(
        model,
        [prompt_tokens(model.tokenizer, prompt)],
        method="self_verified",
        new_tokens=SAMPLE_TOKENS,
        temperature=SAMPLE_TEMPERATURE,
    )
    text = (prompt + model.tokenizer.continuation(one.tokens)).rstrip()
    return f"{text}\n({len(one.tokens)} tokens in {one.passes} passes of the model)"


def _relative(path: Path) -> str:
    return os.path.relpath(path, ROOT)


if __name__ == "__main__":
    sys.exit(main())
