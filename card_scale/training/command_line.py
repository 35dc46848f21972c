"""The command line of the main job. Imports nothing heavy, so that mistakes and questions are answered at once."""

import argparse
import sys
from typing import Any

from card_scale import config as configs
from card_scale.argument_types import positive, positive_number
from card_scale.errors import CommandLineError, ConfigurationError


class _Help(argparse.Action):
    """``--help``, or ``--help KEY`` for what a key of the configuration means."""

    def __call__(self, parser: argparse.ArgumentParser, _options: Any, key: Any, _option: Any = None) -> None:
        if key is None:
            parser.print_help()
            parser.exit()
        from card_scale.config.reference import describe

        try:
            print("\n".join(describe(key)))
        except CommandLineError as error:
            parser.error(str(error))
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m card_scale.train",
        usage="%(prog)s CONFIG.yaml [group.key=value ...] [options]",
        add_help=False,
        allow_abbrev=False,
        description="Train a causal autoregressive diffusion language model.",
        epilog="Overrides are group.key=value as in the YAML file; --help KEY explains one, docs/configuration.md "
        "lists all. Megatron-LM's long options (--tensor-model-parallel-size 2) work too. Exit codes: 0 done, "
        "2 command line, 3 configuration, 4 data, 5 checkpoint, 6 numeric, 7 hang, 8 a peer was lost, 75 stopped on "
        "request: start the same command again.",
    )
    parser.add_argument("config", metavar="CONFIG.yaml", help="configuration, e.g. launchers/configs/quickstart.yaml")
    parser.add_argument(
        "-h", "--help", action=_Help, nargs="?", metavar="KEY", help="this, or what a key or a group of keys means"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and end")
    parser.add_argument(
        "--from-scratch",
        action="store_true",
        help="set aside what a run has left in run.dir (run.dir/before-NNNN) and begin anew; a restart of the same job "
        "goes on",
    )
    dry = parser.add_argument_group("before a run")
    dry.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and say whether it fits, how long it takes and what it would do, then the resolved "
        "configuration; start nothing",
    )
    dry.add_argument("--ranks", type=positive, metavar="N", help="of the run (default: the fewest that can be)")
    dry.add_argument(
        "--device-memory", type=positive_number, metavar="GIB", help="of a GPU (default: this machine's memory)"
    )
    dry.add_argument("--tokens-per-second", type=positive_number, metavar="N", help="of all ranks, for the time")
    dry.add_argument(
        "--vocabulary-size", type=positive, metavar="N", help="look at a model without a dataset: pieces of a tokenizer"
    )
    return parser


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return (options, overrides); exits with code 2 for an argument that is neither.

    An option that is not its own must not stand before CONFIG: whether it takes a value is not known before the
    configuration is read, so a value there would pass for the file.
    """
    arguments = sys.argv[1:] if argv is None else argv
    parser = _parser()
    options, overrides = parser.parse_known_args(arguments)
    if overrides and arguments.index(overrides[0]) < arguments.index(options.config):
        parser.error(f"{overrides[0]} stands before the configuration file; write CONFIG.yaml first, then overrides")
    for option in ("ranks", "device_memory", "tokens_per_second", "vocabulary_size"):
        if getattr(options, option) is not None and not options.dry_run:
            parser.error(f"--{option.replace('_', '-')} belongs to --dry-run")
    try:
        configs.parse_overrides(overrides, [name.replace("_", "-") for name in vars(options)])
    except CommandLineError as error:
        parser.error(str(error))
    except ConfigurationError:
        pass  # a value that is no YAML, which reading the configuration refuses
    return options, overrides
