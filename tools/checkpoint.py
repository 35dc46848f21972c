#!/usr/bin/env python3
"""Exports checkpoints to Hugging Face folders, and makes checkpoints out of such folders."""

import argparse
import sys
from pathlib import Path

from card_scale.cli import run_tool


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 4 data (a tokenizer), 5 checkpoint or folder unusable.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    export = commands.add_parser(
        "export",
        help="write a folder that transformers loads as LlamaForCausalLM",
        description="Write a folder that transformers loads as LlamaForCausalLM: safetensors, configuration, a "
        "tokenizer that encodes identically. With trust_remote_code=True it also decodes in parallel: "
        "model.generate_parallel([ids], new_tokens=100).",
    )
    export.add_argument("checkpoint", type=Path, help="directory, e.g. runs/quickstart/checkpoints/iter_0000200")
    export.add_argument("folder", type=Path, help="to create")
    export.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="number format of the weights (default: float32, as they are trained)",
    )
    export.add_argument("--ema", action="store_true", help="the moving average of the weights (optimizer.ema)")
    take = commands.add_parser(
        "import",
        help="make a checkpoint that training starts from (run.init_from)",
        description="Make a checkpoint out of a Llama-shaped folder with a sentencepiece tokenizer. [MASK] is added, "
        "so that the model can train on as CARD: build data with the checkpoint's tokenizer.model, then train with "
        "run.init_from=CHECKPOINT and the model.* keys that are printed.",
    )
    take.add_argument("folder", type=Path, help="Hugging Face folder: config.json, *.safetensors, tokenizer.model")
    take.add_argument("checkpoint", type=Path, help="directory to create")
    return parser.parse_args()


def main() -> None:
    """Run the command."""
    arguments = parse()
    # torch only now: --help must answer at once.
    if arguments.command == "export":
        from card_scale.generation.hugging_face.export import export

        files = export(arguments.checkpoint, arguments.folder, arguments.dtype, ema=arguments.ema)
        print(f"wrote {arguments.folder}: {', '.join(files)}")
        return
    from card_scale.generation.hugging_face.importing import import_folder

    config = import_folder(arguments.folder, arguments.checkpoint)
    keys = " ".join(f"{key}={value}" for key, value in config.flat().items() if key.startswith("model."))
    print(f"wrote {arguments.checkpoint}\ntrain on with: run.init_from={arguments.checkpoint} {keys}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
