#!/usr/bin/env python3
"""Time a training step of AR, CARD, MDLM and BD3-LM on the same layers, in turns, and say where the time goes."""

import argparse
import os
import sys
from pathlib import Path

from card_scale.argument_types import figure_file, not_negative_number, output_file, positive
from card_scale.cli import run_tool
from card_scale.objectives import registry


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Overrides are group.key=value and hold for every configuration, e.g. parallel.engine=fsdp2. Several "
        "ranks: start it with torchrun. Exit codes: 0 done, 2 command line, 3 configuration (also what does not fit "
        "into memory), 6 the parts of a step do not add up to the whole. How to read the result: docs/benchmark.md",
    )
    parser.add_argument("config", nargs="+", help="YAML files, e.g. launchers/configs/card-124m.yaml")
    names = list(registry.BUILT_IN)
    shape = "OBJECTIVE[-BACKEND][-bBLOCK], e.g. bd3lm-flex-b16"
    shown = f"{shape} (default: {' '.join(names)})"
    parser.add_argument("--arms", nargs="+", metavar="ARM", default=names, help=shown)
    parser.add_argument(
        "--blocks", nargs="+", type=positive, metavar="N", default=[16], help="of objectives with blocks (default: 16)"
    )
    parser.add_argument("--lengths", nargs="+", type=positive, metavar="L", default=[], help="default: configured")
    parser.add_argument("--tokens", type=positive, metavar="N", help="of a micro-batch (default: configured)")
    parser.add_argument("--vocabulary", type=positive, metavar="N", default=50_368, help="pieces (default: 50368)")
    parser.add_argument("--steps", type=positive, metavar="N", default=50, help="timed steps of each arm (default: 50)")
    parser.add_argument("--warm-up", type=int, metavar="N", default=5, help="steps not timed, at least 2 (default: 5)")
    parser.add_argument(
        "--memory-gib",
        type=not_negative_number,
        metavar="GIB",
        help="also time each arm's largest micro-batch under this cap; 0: not",
    )
    parser.add_argument("--tolerance", type=float, default=0.05, help="of parts over whole (default: 0.05)")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write everything, samples and environment included"
    )
    parser.add_argument("--tensorboard", type=Path, metavar="DIRECTORY", help="write scalars over L")
    parser.add_argument(
        "--earlier", nargs="+", type=Path, metavar="JSON", default=[], help="earlier results that the plot shows too"
    )
    parser.add_argument("--plot", type=figure_file, metavar="PNG", help="draw BD3-LM over CARD by L and backend")
    parser.add_argument(
        "--profile", action="store_true", help="also write torch.profiler's table of each arm by --json"
    )
    # Taken out first: argparse would count them to the list of the option before them.
    overrides = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    arguments, others = parser.parse_known_args([word for word in sys.argv[1:] if word not in overrides])
    if arguments.steps < 1 or arguments.warm_up < 2:
        parser.error("--steps must be at least 1 and --warm-up at least 2")
    if arguments.profile and not arguments.json:
        parser.error("--profile writes beside --json FILE: give both")
    return arguments, overrides + others


def main() -> None:
    """Measure case by case; after each print its tables and write the files anew."""
    arguments, overrides = parse()
    from card_scale import config as configs
    from card_scale import known_warnings

    models = [(Path(path).stem, configs.load(path, overrides)) for path in arguments.config]
    known_warnings.silence()
    import torch
    import torch.distributed as dist

    from card_scale.benchmark import arms, latency
    from card_scale.benchmark.curves import write_curves
    from card_scale.benchmark.decomposition import check_adds_up
    from card_scale.benchmark.ratio_figure import draw, read_results
    from card_scale.benchmark.report import parts_over_whole, tables, to_json
    from card_scale.cost.flops import FORMULA
    from card_scale.distributed import process_groups
    from card_scale.environment import environment
    from card_scale.files import write_atomically

    earlier = [result for path in arguments.earlier for result in read_results(path)]
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    cases = latency.cases(models, arguments.lengths, arguments.tokens, world_size)
    settings = latency.Settings(
        arms=arms.parse(arguments.arms, arguments.blocks),
        vocabulary=arguments.vocabulary,
        steps=arguments.steps,
        warm_up=arguments.warm_up,
        memory_cap=latency.memory_cap(arguments.memory_gib),
        profile=arguments.profile,
    )
    layout = latency.check(cases, settings, world_size)
    process_groups.initialize(layout, models[0][1].run.timeout_seconds)
    record = {"environment": environment(), "flops_formula": FORMULA, "results": []}
    for result, make_profiles in latency.run(cases, settings, layout):
        record["results"].append(result)
        if dist.get_rank() == 0:
            print(tables(result), end="\n\n", flush=True)
            if arguments.json:
                write_atomically(arguments.json, to_json(record).encode())
        for arm, profile in make_profiles().items():
            if dist.get_rank() == 0:
                name = f"{arguments.json.stem}_{result['model']}_L{result['length']}_{arm}_profile.txt"
                arguments.json.with_name(name).write_text(profile, encoding="utf-8")
        del make_profiles  # it holds the engine, beside which the next model's would take memory
    if dist.get_rank() == 0:
        if arguments.tensorboard:
            write_curves(arguments.tensorboard, record["results"])
        if arguments.plot:
            device = record["environment"]["device"]
            draw([*earlier, *record["results"]], arguments.plot, f"{device}, torch {torch.__version__}")
    process_groups.destroy()
    quotients = [parts_over_whole(result) for result in record["results"]]
    check_adds_up({name: value for each in quotients for name, value in each.items()}, arguments.tolerance)


if __name__ == "__main__":
    sys.exit(run_tool(main))
