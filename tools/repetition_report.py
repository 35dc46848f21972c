#!/usr/bin/env python3
"""Report on a study of data repetition: one HTML page with its figures, PNG files of them, and TensorBoard curves."""

import argparse
import sys
from pathlib import Path

from card_scale.argument_types import not_negative, positive
from card_scale.cli import run_tool
from card_scale.files import write_atomically

FORMS = ("data-constrained", "practical", "none")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="docs/studies.md says how to read it. Exit codes: 0 done, 2 command line, 3 configuration, 4 a table "
        "that no comparison should be made of.",
    )
    parser.add_argument("table", type=Path, help="results.parquet or results.csv of tools/study.py, or their directory")
    parser.add_argument("--output", type=Path, help="directory of the report (default: report/ beside the table)")
    parser.add_argument("--title", default="Data repetition", help="title of the page")
    parser.add_argument(
        "--base", nargs="+", metavar="ARM", help="arms that the others are compared with (default: the first one)"
    )
    parser.add_argument("--form", choices=FORMS, default=FORMS[0], help="law fitted to each arm (default: %(default)s)")
    parser.add_argument("--bootstrap", type=positive, default=200, metavar="N", help="resamples (default: %(default)s)")
    parser.add_argument(
        "--hold-out", type=not_negative, default=0, metavar="K", help="predict each arm's K runs of most compute"
    )
    parser.add_argument("--seed", type=not_negative, default=0, help="of resamples and starts (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Read the table, draw, fit, write."""
    options = parse()
    from card_scale import charts
    from card_scale.laws.analysis import Settings
    from card_scale.laws.table_reader import find
    from card_scale.studies.report import caveats, figures, page, swept_figures
    from card_scale.studies.report import finished_runs as runs
    from card_scale.studies.report import fitted_laws as laws
    from card_scale.studies.report.scalars import write_scalars
    from card_scale.waiting import every_two_seconds

    table = find(options.table)
    study = runs.read(table)
    output = options.output or table.parent / "report"
    (output / "figures").mkdir(parents=True, exist_ok=True)
    settings = Settings(bootstrap=options.bootstrap, hold_out=options.hold_out, seed=options.seed)
    say = every_two_seconds()
    fitted = [] if options.form == "none" else laws.fit_arms(study, options.form, settings, say)
    bases = study.exact_arms(options.base) if options.base else study.arms[:1]
    crossed = {}
    for base in bases:
        say(f"crossovers against {base}")
        crossed[base] = laws.crossovers(study, base, options.bootstrap, options.seed)
    first = crossed[bases[0]]
    shown = [
        *figures.figures(study, laws.crossings(first)),
        swept_figures.loss_over_weight_decay(study),
        swept_figures.isoloss(study),
        laws.critical_compute(study, first),
        *([laws.effective_data(study, fitted)] if fitted else []),
    ]
    for one in shown:
        if isinstance(one, figures.Figure):
            say(f"figure {one.name}")
            figures.save(one, output / "figures" / f"{one.name}.png")
    for arm, figure in laws.draw_fits(fitted):
        charts.save(figure, output / "figures" / f"law_{arm}.png")
    against = page.Compared(bases, [one for found in crossed.values() for one in found])
    text = page.page(options.title, study, shown, fitted, against, str(table))
    write_atomically(output / "index.html", text.encode())
    write_scalars(study, output / "tensorboard")
    for line in caveats.caveats(study, fitted):
        print(f"- {line}")
    print(f"written: {output / 'index.html'}, {output / 'figures'}, {output / 'tensorboard'}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
