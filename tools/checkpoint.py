#!/usr/bin/env python3
"""Looks at checkpoints, compares and prunes them, exports them to Hugging Face folders and imports such folders."""

import argparse
import sys
from pathlib import Path
from typing import Any

from card_scale.argument_types import not_negative, positive
from card_scale.cli import run_tool
from card_scale.errors import CheckpointError, ConfigurationError


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Exit codes: 0 done, 2 command line, 3 an option or a run that is going on, 4 data (a tokenizer), "
        "5 checkpoint or folder unusable or damaged.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_looking(commands)
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
        description="Make a checkpoint out of a Llama-shaped folder. [MASK] is added, so that the model can train on "
        "as CARD: build data with the checkpoint's tokenizer, then train with run.init_from=CHECKPOINT and the model.* "
        "keys that are printed.",
    )
    take.add_argument(
        "folder", type=Path, help="Hugging Face folder: config.json, *.safetensors, tokenizer.model or tokenizer.json"
    )
    take.add_argument("checkpoint", type=Path, help="directory to create")
    return parser.parse_args()


def _add_looking(commands: Any) -> None:
    """Add what looks at checkpoints of a run."""
    runs = {"help": "run directory, or its checkpoints", "type": Path}
    commands.add_parser("list", help="the checkpoints of a run").add_argument("run", **runs)
    verify = commands.add_parser(
        "verify",
        help="compare every file's hash with the manifest",
        description="Compare every file's SHA-256 with the manifest, of one checkpoint or of all of a run. Exit code 5 "
        "where anything is damaged.",
    )
    verify.add_argument("path", type=Path, help="checkpoint, or run directory")
    show = commands.add_parser("show", help="what a checkpoint holds")
    show.add_argument("checkpoint", type=Path, help="directory, e.g. runs/quickstart/checkpoints/iter_0000200")
    show.add_argument("--tensors", action="store_true", help="also every tensor with its shape")
    diff = commands.add_parser(
        "diff",
        help="where two checkpoints differ",
        description="Say where two checkpoints differ: configuration, tensors, and by how much.",
    )
    diff.add_argument("one", type=Path, help="checkpoint")
    diff.add_argument("other", type=Path, help="checkpoint")
    diff.add_argument("--states", action="store_true", help="also the optimizer's states, not the weights alone")
    prune = commands.add_parser(
        "prune",
        help="delete old checkpoints of a run",
        description="Delete the checkpoints of a run that these rules do not keep, and what killed processes left. The "
        "latest always stays. A run that is going on is refused.",
    )
    prune.add_argument("run", **runs)
    prune.add_argument("--keep-last", type=positive, required=True, help="keep the newest so many, 2 at least")
    prune.add_argument("--keep-every", type=not_negative, default=0, help="also those at multiples of so many steps")
    prune.add_argument("--yes", action="store_true", help="delete; without it only say what would go")


def main() -> None:
    """Run the command."""
    arguments = parse()
    # torch only now: --help must answer at once.
    commands = {
        "export": _export,
        "import": _import,
        "list": _list,
        "verify": _verify,
        "show": _show,
        "diff": _diff,
        "prune": _prune,
    }
    commands[arguments.command](arguments)


def _export(arguments: argparse.Namespace) -> None:
    from card_scale.generation.hugging_face.export import export

    files = export(arguments.checkpoint, arguments.folder, arguments.dtype, ema=arguments.ema)
    print(f"wrote {arguments.folder}: {', '.join(files)}")


def _import(arguments: argparse.Namespace) -> None:
    from card_scale.generation.hugging_face.importing import import_folder

    config = import_folder(arguments.folder, arguments.checkpoint)
    keys = " ".join(f"{key}={value}" for key, value in config.flat().items() if key.startswith("model."))
    print(f"wrote {arguments.checkpoint}\ntrain on with: run.init_from={arguments.checkpoint} {keys}")


def _list(arguments: argparse.Namespace) -> None:
    from card_scale.checkpoint.inspection import checkpoints, root_of

    root = root_of(arguments.run)
    for one in checkpoints(root):
        mark = "  <- latest" if one.is_latest else ""
        what = one.problem or f"{one.bytes / 2**20:>9.1f} MiB  {one.manifest.layout}, {one.manifest.engine}"
        print(f"{one.path.name}  {one.saved}  {what}{mark}")


def _verify(arguments: argparse.Namespace) -> None:
    from card_scale.checkpoint.directory import check_step
    from card_scale.checkpoint.format import MANIFEST_NAME, read_manifest
    from card_scale.checkpoint.inspection import checkpoints, pointer_problem, root_of
    from card_scale.checkpoint.verify import damaged_files

    path = arguments.path
    is_one = path.name.startswith("iter_") or (path / MANIFEST_NAME).exists()
    paths = [path] if is_one else [one.path for one in checkpoints(root_of(path))]
    damaged = 0
    for one in paths:
        try:
            manifest = read_manifest(one)
            check_step(one, manifest)
            problems = damaged_files(one, manifest.files)
        except CheckpointError as error:
            problems = [str(error)]
        print("\n".join(problems) if problems else f"{one}: every file is what was written", flush=True)
        damaged += bool(problems)
    if damaged:
        raise CheckpointError(f"{damaged} of {len(paths)} checkpoints are damaged")
    if not is_one and (problem := pointer_problem(root_of(path))):
        raise CheckpointError(problem)


def _show(arguments: argparse.Namespace) -> None:
    import math

    from card_scale.checkpoint.directory import checkpoint_at
    from card_scale.checkpoint.reader import CheckpointReader

    reader = CheckpointReader(checkpoint_at(arguments.checkpoint))
    manifest = reader.manifest
    parameters = sum(math.prod(tensor.shape) for tensor in manifest.tensors.values())
    size = sum(file.bytes for file in manifest.files.values())
    print(f"{reader.directory}: after {manifest.step} updates")
    print(f"written by: {manifest.layout}, {manifest.engine}")
    print(f"holds: {parameters:,} parameters; {', '.join(manifest.state_keys)}; {size / 2**20:,.1f} MiB")
    print(f"tokenizer: {manifest.tokenizer_sha256[:12]}; data: {manifest.data_digest}")
    print("versions: " + ", ".join(f"{name} {version}" for name, version in manifest.versions.items()))
    print("state: " + ", ".join(f"{key} {value}" for key, value in reader.state.items()))
    if arguments.tensors:
        for name, tensor in manifest.tensors.items():
            print(f"  {name} {tuple(tensor.shape)}, in {len(tensor.pieces)} pieces")


def _diff(arguments: argparse.Namespace) -> None:
    from card_scale.checkpoint.directory import checkpoint_at
    from card_scale.checkpoint.format import WEIGHT
    from card_scale.checkpoint.inspection import configuration_differences, tensor_differences
    from card_scale.checkpoint.reader import CheckpointReader

    paths = (checkpoint_at(arguments.one), checkpoint_at(arguments.other))
    with CheckpointReader(paths[0]) as one, CheckpointReader(paths[1]) as other:
        count = 0
        for key, (first, second) in configuration_differences(one, other).items():
            print(f"{key}: {first} | {second}")
            count += 1
        both = [key for key in one.manifest.state_keys if key in other.manifest.state_keys]
        for key in {*one.manifest.state_keys, *other.manifest.state_keys}.difference(both) if arguments.states else ():
            print(f"{key} is held by one of them only")
            count += 1
        for found in tensor_differences(one, other, both if arguments.states else [WEIGHT]):
            print(f"{found.name} ({found.key}) {found.what}")
            count += 1
        print(f"{count} differences" if count else "no difference")


def _prune(arguments: argparse.Namespace) -> None:
    from card_scale.checkpoint.directory import leftovers, pointed_step, published_steps
    from card_scale.checkpoint.inspection import root_of
    from card_scale.checkpoint.retention import Retention, prune, steps_to_prune
    from card_scale.training.run_lock import RunLock

    if arguments.keep_last < 2:
        raise ConfigurationError("--keep-last is 1; valid is at least 2: the newest may turn out damaged")
    root = root_of(arguments.run)
    with RunLock(root.parent):
        before = published_steps(root)
        pointer = pointed_step(root)
        retention = Retention(arguments.keep_last, arguments.keep_every)
        going = steps_to_prune(root, retention)
        left = [] if pointer is None else leftovers(root, pointer)
        for name in (*(f"checkpoint of step {step}" for step in going), *(path.name for path in left)):
            print(f"{'deleting' if arguments.yes else 'would delete'}: {name}")
        if arguments.yes:
            prune(root, retention)
    kept = len(published_steps(root)) if arguments.yes else len(before) - len(going)
    print(f"{kept} of {len(before)} checkpoints {'are left' if arguments.yes else 'would be left; --yes deletes'}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
