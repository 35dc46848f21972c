"""transformers' own greedy decoding of an exported checkpoint, timed in turns with this project's: no strawman."""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from card_scale.generation.hugging_face.export import export
from card_scale.generation.loop import generate
from card_scale.generation.model import InferenceModel


def time_over_transformers(
    checkpoint: Path, model: InferenceModel, prompts: list[list[int]], new_tokens: int, repetitions: int
) -> list[float]:
    """Return for each repetition the time of ``ar`` over that of transformers with a static cache, batch 1.

    Raises AssertionError where the two do not write the same tokens.
    """
    device = model.embedding.weight.device
    with tempfile.TemporaryDirectory() as scratch:
        export(checkpoint, Path(scratch) / "folder")
        theirs = AutoModelForCausalLM.from_pretrained(Path(scratch) / "folder", dtype=model.embedding.weight.dtype)
    theirs = torch.nn.Module.to(theirs, device)
    ratios = []
    for repetition in range(repetitions + 1):
        seconds, ours, theirs_texts = [0.0, 0.0], list[list[int]](), list[list[int]]()
        for prompt in prompts:
            begin = time.perf_counter()
            (one,) = generate(model, [prompt], method="ar", new_tokens=new_tokens)
            middle = time.perf_counter()
            whole = theirs.generate(
                torch.tensor([prompt], device=device),
                max_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=None,
                cache_implementation="static",
            )
            end = time.perf_counter()
            seconds[0] += middle - begin
            seconds[1] += end - middle
            ours.append(one.tokens)
            theirs_texts.append(whole[0, len(prompt) :].tolist())
        if model.embedding.weight.dtype == torch.float32:
            assert ours == theirs_texts, "transformers writes other tokens"
        if repetition:  # the first warms up
            ratios.append(seconds[0] / seconds[1])
    return ratios


def describe(ratios: list[float]) -> str:
    """Say how the times compare."""
    return (
        f"ar over transformers' greedy decoding with a static cache: {statistics.median(ratios):.2f} of its time "
        f"(median of {len(ratios)}; {min(ratios):.2f} to {max(ratios):.2f})"
    )
