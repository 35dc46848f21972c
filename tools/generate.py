#!/usr/bin/env python3
"""Generates text from a checkpoint."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from card_scale.argument_types import not_negative, not_negative_number, positive, positive_number, positive_share
from card_scale.cli import run_tool
from card_scale.errors import CardScaleError, ConfigurationError, DataError
from card_scale.objectives.decoders import METHODS, OPTIONS

DEFAULT_TOKENS = 100


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Go on with prompts from a checkpoint of any layout. A prompt stands at the beginning of a "
        "document; without one the model begins a document of its own.",
        epilog="Exit codes: 0 done, 2 command line, 3 an option or prompt that the model cannot serve, 4 data, "
        "5 checkpoint unusable, 75 stopped.",
    )
    parser.add_argument("checkpoint", type=Path, help="directory, e.g. runs/quickstart/checkpoints/iter_0000200")
    where = parser.add_argument_group("prompts")
    where.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    where.add_argument("--file", action="append", default=[], type=Path, help="whose text is a prompt; several times")
    where.add_argument("--interactive", action="store_true", help="read prompts line by line until end of input")
    _add_decoding(parser.add_argument_group("decoding"))
    show = parser.add_argument_group("output")
    show.add_argument(
        "--json", action="store_true", help="one object a prompt: prompt, text, tokens, passes, seconds (of all)"
    )
    show.add_argument("--colour", action="store_true", help="show which tokens were decided together, by pass")
    parser.add_argument(
        "--compile", action="store_true", help="compile passes, on a GPU as CUDA graphs: pays for long runs"
    )
    parser.add_argument("--device", help="(default: a GPU where there is one)")
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights (optimizer.ema)")
    arguments = parser.parse_args()
    if not arguments.temperature:
        for name in ("top_p", "top_k"):
            if getattr(arguments, name) is not None:
                parser.error(
                    f"--{name.replace('_', '-')} says nothing to --temperature 0, which takes the most probable token"
                )
    if arguments.interactive and (arguments.prompt or arguments.file):
        parser.error("--interactive reads its prompts itself: leave out --prompt and --file")
    return arguments


def _add_decoding(how: argparse._ArgumentGroup) -> None:
    """Add what card_scale.generation.generate takes."""
    how.add_argument(
        "--method",
        choices=METHODS,
        help="ar: a token a pass; self_verified: the same tokens in fewer passes; card: blocks, not lossless; bd3lm, "
        "mdlm, armd_strided: samplers of these models (default: the best that the checkpoint's objective knows, "
        "losslessly)",
    )
    how.add_argument(
        "--tokens", type=positive, help=f"new tokens (default: {DEFAULT_TOKENS}, or what fits the model's length)"
    )
    how.add_argument("--drafts", type=positive, help="K: self_verified: drafts a pass; card: window (default: 4)")
    how.add_argument(
        "--candidates",
        type=positive,
        help="self_verified: tokens to consider for each place (default: 1 on a CPU, else 2)",
    )
    how.add_argument(
        "--copies", type=not_negative, help="self_verified: tokens to draft at most by copying (default: 24)"
    )
    how.add_argument(
        "--leniency",
        type=not_negative_number,
        help="self_verified: also take a draft of at least (1 - leniency) of the best token's probability: "
        "more tokens a pass, another text (default: 0, lossless)",
    )
    how.add_argument("--tau", type=not_negative_number, help="card: probability to exceed (default: 0.9)")
    how.add_argument(
        "--max-passes",
        type=positive,
        help="T_max: card: passes before what is left is taken; bd3lm, "
        "mdlm: steps a block or text (default: card: no limit, or K with --blocks; else one a token)",
    )
    how.add_argument(
        "--blocks",
        dest="leftmost",
        action="store_false",
        default=None,
        help="card: as in the paper, a block at a time, nothing is forced"
        " on the left (default: always take the first masked token and move on)",
    )
    how.add_argument(
        "--strides", type=positive, help="armd_strided: S stretches of the text at once (default: 1, a token a pass)"
    )
    how.add_argument("--temperature", type=not_negative_number, default=0.0, help="0: the most probable (default)")
    how.add_argument("--top-p", type=positive_share, help="keep tokens up to this probability (default: 1)")
    how.add_argument("--top-k", type=not_negative, help="keep so many tokens; 0 all (default)")
    how.add_argument("--repetition-penalty", type=positive_number, default=1.0, help="above 1 discourages (default: 1)")
    how.add_argument("--seed", type=int, default=0, help="of sampling (default: 0)")
    how.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end at this text; several times")
    how.add_argument("--through-end", action="store_true", help="go on behind the end of a document")


def main() -> None:
    """Run the command."""
    arguments = parse()
    # torch only now: --help must answer at once.
    import torch

    from card_scale.generation import load

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load(arguments.checkpoint, device, ema=arguments.ema, compiled=arguments.compile)
    if arguments.interactive:
        for line in _lines():
            try:
                _generate(model, [line], arguments)
            except CardScaleError as error:
                print(f"error: {error}", file=sys.stderr)  # the next line may be a better one
        return
    _generate(model, arguments.prompt + [_text_of(path) for path in arguments.file] or [""], arguments)


def _options(arguments: argparse.Namespace, method: str) -> dict[str, Any]:
    """The options that are given; ConfigurationError for one that the method does not look at."""
    names = dict.fromkeys(name for options in OPTIONS.values() for name in options)
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    for name in given:
        if name not in OPTIONS[method]:
            flag = "blocks" if name == "leftmost" else name.replace("_", "-")
            those = ", ".join(one for one, options in OPTIONS.items() if name in options)
            raise ConfigurationError(f"--{flag} says nothing to --method {method}; it is an option of {those}")
    return given


def _text_of(path: Path) -> str:
    """The text of a file, its line ends as they are."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: {error}") from None


def _lines():
    """Prompts from the terminal, or from whatever stands in its place."""
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def _generate(model: Any, prompts: list[str], arguments: argparse.Namespace) -> None:
    """Generate for prompts in one batch and print; a single one is printed while it comes."""
    from card_scale.generation import generate
    from card_scale.generation.stopping import text_before_stop
    from card_scale.generation.text import TextStream, prompt_tokens

    tokens = [prompt_tokens(model.tokenizer, prompt) for prompt in prompts]
    room = model.shape.length - max(map(len, tokens))
    if room < 1:
        raise ConfigurationError(
            f"a prompt of {max(map(len, tokens))} tokens leaves no room in the model's length {model.shape.length}"
        )
    stops = tuple(arguments.stop)
    streams = [
        TextStream(model.tokenizer, sys.stdout, prompt, coloured=arguments.colour, stops=stops) for prompt in prompts
    ]
    is_streamed = len(prompts) == 1 and not arguments.json
    method = arguments.method or ("self_verified" if "self_verified" in model.decoders else model.decoders[0])
    options = _options(arguments, method)
    begin = time.perf_counter()
    found = generate(
        model,
        tokens,
        method=method,
        new_tokens=arguments.tokens or min(DEFAULT_TOKENS, room),
        **options,
        temperature=arguments.temperature,
        top_p=1.0 if arguments.top_p is None else arguments.top_p,
        top_k=arguments.top_k or 0,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        stop_tokens=() if arguments.through_end else (model.tokenizer.eos_id,),
        stop_strings=stops,
        listener=(lambda index, new, passes: streams[index].write(new, passes)) if is_streamed else None,
    )
    seconds = time.perf_counter() - begin
    for prompt, one, stream in zip(prompts, found, streams, strict=True):
        if arguments.json:
            text = text_before_stop(model.tokenizer.continuation(one.tokens), stops)
            record = {"prompt": prompt, "text": text, "tokens": one.tokens, "passes": one.passes, "seconds": seconds}
            print(json.dumps(record | {"stopped": one.stopped}), flush=True)
            continue
        if not is_streamed:
            stream.write(one.tokens, one.commit_passes)
        stream.close()
        print("\n" if is_streamed else "\n---")
    if not arguments.json:
        count, passes = sum(len(one.tokens) for one in found), max(one.passes for one in found)
        per_pass = count / sum(one.passes for one in found)
        print(
            f"{count} tokens in {passes} passes, {per_pass:.2f} a pass, {count / seconds:.0f} a second", file=sys.stderr
        )


if __name__ == "__main__":
    sys.exit(run_tool(main))
