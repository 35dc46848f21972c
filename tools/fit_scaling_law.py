#!/usr/bin/env python3
"""Fit a scaling law to a table of runs and say which of its constants these runs identify."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from card_scale.argument_types import figure_file, not_negative, output_file, positive, positive_number
from card_scale.cli import run_tool
from card_scale.errors import ConfigurationError, DataError
from card_scale.files import write_json
from card_scale.laws import fit_report as report
from card_scale.laws.allocation import ALLOCATES, best_use
from card_scale.laws.analysis import Settings, analyse
from card_scale.laws.best_epochs import optima, optimal_epochs_law
from card_scale.laws.columns import DONE, OBJECTIVE, REQUIRED, SETTINGS, STATUS
from card_scale.laws.crossover import critical_compute_law, crossover
from card_scale.laws.envelope import envelope
from card_scale.laws.forms import DATA_CONSTRAINED, FORMS
from card_scale.laws.isoflop import isoflops
from card_scale.laws.power_law import PowerLaw
from card_scale.laws.published import CONSTANTS
from card_scale.laws.table import Advice, Table, check, select
from card_scale.laws.table_reader import find, read_rows
from card_scale.laws.variable_projection import variable_projection
from card_scale.waiting import every_two_seconds

ENVELOPE, ISOFLOP, EPOCHS, CROSSOVER = "envelope", "isoflop", "optimal-epochs", "crossover"

WITHOUT_UNIQUE = ("chinchilla", ENVELOPE, ISOFLOP)
"""Forms that do not read the unique tokens."""

TABLE_HELP = f"a study's directory, or a .csv or .parquet file with the columns {', '.join(REQUIRED)}, ..."

ADVICE = Advice(
    unfinished="Run them again, or leave them out with --allow-failed",
    mixed="Select the rows of one with --objective or --where",
    settings="Select one with --where, or keep the best of each cell with --best-setting",
)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="docs/scaling_laws.md explains the forms and the verdicts. "
        "Exit codes: 0 done, 2 command line, 3 configuration, 4 a table that must not be fitted.",
    )
    parser.add_argument("table", type=Path, help=TABLE_HELP)
    choices = [*FORMS, ENVELOPE, ISOFLOP, EPOCHS, CROSSOVER]
    parser.add_argument("--form", choices=choices, default="data-constrained", help="law (default: %(default)s)")
    parser.add_argument(
        "--objective", nargs="+", default=[], metavar="NAME", help="fit this one; --form crossover: BASE CHALLENGER"
    )
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help="only such rows")
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help="take the file's COLUMN as NAME"
    )
    parser.add_argument("--allow-failed", action="store_true", help=f"leave out runs whose {STATUS} is not {DONE}")
    parser.add_argument(
        "--best-setting",
        action="store_true",
        help=f"of each cell (objective, N, D, U) fit the setting ({', '.join(SETTINGS)}) of lowest mean loss only",
    )
    parser.add_argument("--constants", choices=list(CONSTANTS), help="take A, B, E, alpha, beta as published")
    parser.add_argument("--fix", action="append", default=[], metavar="NAME=VALUE", help="take a constant as given")
    parser.add_argument("--starts", type=positive, default=64, help="starts of the fit (default: %(default)s)")
    parser.add_argument(
        "--bootstrap", type=not_negative, default=200, metavar="N", help="resamples (default: %(default)s)"
    )
    parser.add_argument(
        "--hold-out", type=not_negative, default=0, metavar="K", help="predict the K runs of the most compute"
    )
    parser.add_argument(
        "--budget",
        type=positive_number,
        nargs="+",
        default=[],
        metavar="FLOPS",
        help=f"say how to spend it (6 N D) under the law; forms {', '.join(ALLOCATES)}",
    )
    parser.add_argument(
        "--unique", type=positive_number, metavar="TOKENS", help="that --budget may repeat; --form data-constrained"
    )
    parser.add_argument("--profile", action="store_true", help="list the points of the profile likelihoods")
    parser.add_argument("--level", type=float, default=0.95, help="coverage of intervals (default: %(default)s)")
    parser.add_argument("--seed", type=not_negative, default=0, help="of starts and resamples (default: %(default)s)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the result")
    parser.add_argument(
        "--plot",
        type=figure_file,
        metavar="FILE",
        help="draw profiles and predicted against measured loss: .pdf, .png or .svg",
    )
    options = parser.parse_args()
    if contradiction := contradiction_of(options):
        parser.error(contradiction)
    return options


def contradiction_of(options: argparse.Namespace) -> str | None:
    """Return what is wrong with options that do not go together, None where nothing is."""
    if not 0.0 < options.level < 1.0:
        return "--level is between 0 and 1"
    if options.form not in FORMS and (options.plot or options.profile or options.hold_out or options.fix):
        return f"--plot, --profile, --hold-out and --fix go with the laws {', '.join(FORMS)}"
    if options.budget and options.form not in ALLOCATES:
        return f"--budget goes with the laws {', '.join(ALLOCATES)}"
    if (options.unique is not None) != (bool(options.budget) and options.form == DATA_CONSTRAINED.name):
        return f"--unique goes with --budget and --form {DATA_CONSTRAINED.name}, which needs it"
    if options.form == CROSSOVER and len(options.objective) != 2:
        return "--form crossover needs --objective BASE CHALLENGER"
    return None


def main() -> None:
    """Read, fit, report."""
    options = parse()
    rows = read_rows(find(options.table), column_names(options.column))
    where: dict[str, list[str]] = {}
    for name, value in (pair(item, "--where") for item in options.where):
        where.setdefault(name, []).append(value)
    if options.objective:
        where[OBJECTIVE] = options.objective
    if where:
        rows = select(rows, where)
    table = check(
        rows,
        options.allow_failed,
        comparison=options.form == CROSSOVER,
        settings="best" if options.best_setting else "one",
        advice=ADVICE,
        needs_unique=options.form not in WITHOUT_UNIQUE,
    )
    for reason in table.left_out:
        print(f"left out: {reason}")
    if options.best_setting:
        print(f"left out as other settings than the best of their cell: {table.other_settings} runs")
    if options.form != CROSSOVER:
        for name in table.bounds():
            print(f"the losses of {name} are upper bounds: what is fitted is the law of its bound, not of its loss")
    if options.form in FORMS:
        result = fit_law(options, table)
    else:
        result = {
            ENVELOPE: run_envelope,
            ISOFLOP: run_isoflops,
            EPOCHS: run_optimal_epochs,
            CROSSOVER: run_crossover,
        }[options.form](options, table)
    if options.json:
        write_json(options.json, result)
        print(f"written: {options.json}")


def pair(item: str, option: str) -> tuple[str, str]:
    """Split NAME=VALUE."""
    name, equals, value = item.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"{option} {item} is not NAME=VALUE")
    return name, value


def column_names(items: list[str]) -> dict[str, str]:
    """Return the file's column for each NAME of --column. Raises ConfigurationError for a NAME that is given twice."""
    names: dict[str, str] = {}
    for name, column in (pair(item, "--column") for item in items):
        if names.setdefault(name, column) != column:
            raise ConfigurationError(f"--column takes {name} from {names[name]} and from {column}; choose one")
    return names


def given_constants(options: argparse.Namespace) -> dict[str, float]:
    """Return the constants that are not fitted."""
    given = dict(CONSTANTS[options.constants]) if options.constants else {}
    for name, value in (pair(item, "--fix") for item in options.fix):
        try:
            given[name] = float(value)
        except ValueError:
            raise ConfigurationError(f"--fix {name}={value}: {value} is no number (inf is one)") from None
    return given


def fit_law(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Fit one of the laws, print the report, draw the figure."""
    settings = Settings(options.starts, options.bootstrap, options.hold_out, options.seed, options.level)
    analysis = analyse(FORMS[options.form], table.runs, given_constants(options), settings, every_two_seconds())
    print(report.text(analysis, options.profile))
    result = report.plain(analysis, options.profile)
    if options.form == "chinchilla" and not analysis.fit.fixed:
        values = variable_projection(table.runs)
        print(report.projection_text(analysis, values))
        result["variable_projection"] = report.projection_plain(analysis, values)
    if options.budget:
        uses = [best_use(analysis, budget, options.unique) for budget in sorted(set(options.budget))]
        print(report.budgets_text(uses, analysis.unidentified(), options.level))
        result["budgets"] = report.budgets_plain(uses)
    if options.plot:
        from card_scale.laws import fit_figures as figures

        figures.draw(analysis, options.plot)
        print(f"written: {options.plot}")
    return result


def run_envelope(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Approach 1."""
    found = envelope(table.runs, options.bootstrap, options.seed, options.level)
    print(report.envelope_text(found))
    return {"sizes": report.power_law_plain(found.sizes), "curves": found.curves}


def run_isoflops(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Approach 2."""
    found = isoflops(table.runs, options.level)
    print(report.isoflops_text(found))
    return {
        "valleys": [valley._asdict() for valley in found.valleys],
        "left_out": found.rejected,
        "sizes": report.power_law_plain(found.sizes),
        "tokens": report.power_law_plain(found.tokens),
    }


def run_optimal_epochs(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Optimal epochs of each ladder and their power law."""
    found = optima(table.runs)
    law = law_or_reason(lambda: optimal_epochs_law(found, options.level))
    print(report.optima_text(found, law))
    ladders = [{name: report.number(value) for name, value in one._asdict().items()} for one in found]
    return {"ladders": ladders, **report.law_plain(law)}


def run_crossover(options: argparse.Namespace, table: Table) -> dict[str, Any]:
    """Crossover of two objectives for each number of unique tokens, and its power law."""
    base_name, challenger_name = options.objective
    base, challenger = table.of(base_name), table.of(challenger_name)
    shared = sorted(set(base.U) & set(challenger.U))
    if not shared:
        raise ConfigurationError(f"{base_name} and {challenger_name} share no number of unique tokens")
    found, refused = [], []
    for unique in shared:
        arms = (runs.take(unique == runs.U) for runs in (base, challenger))
        try:
            found.append(crossover(*arms, options.bootstrap, options.seed, options.level))
        except DataError as error:
            refused.append(str(error))
    if not found:
        raise DataError(f"{base_name} and {challenger_name} cannot be compared: {'; '.join(refused)}")
    law = law_or_reason(lambda: critical_compute_law(found, options.level))
    print(report.crossover_text(base_name, challenger_name, found, refused, law))
    for name in table.bounds():
        print(f"the losses of {name} are upper bounds: its true crossover may lie elsewhere")
    crossovers = [report.crossover_plain(one) for one in found]
    return {"crossovers": crossovers, "no_crossover": refused, **report.law_plain(law)}


def law_or_reason(fit: Callable[[], PowerLaw]) -> PowerLaw | str:
    """Return the power law, or why these points give none: what it was to be fitted to is still reported."""
    try:
        return fit()
    except DataError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(run_tool(main))
