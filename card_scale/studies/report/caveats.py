"""What a reader must know before quoting a number of a study."""

from collections.abc import Sequence

from card_scale.studies.report import compared
from card_scale.studies.report.figures import panel_title
from card_scale.studies.report.finished_runs import Study
from card_scale.studies.report.fitted_laws import Fitted


def caveats(study: Study, fitted: Sequence[Fitted]) -> list[str]:
    """Return what a reader must know before quoting a number of this study."""
    said = []
    bounds = [arm for arm in study.arms if study.is_bound(arm)]
    exact = [arm for arm in study.arms if arm not in bounds]
    if bounds and exact:
        said.append(
            f"The losses of {', '.join(bounds)} are estimated upper bounds, those of {', '.join(exact)} exact "
            "likelihoods. They are not ranked with one another: a bound below an exact loss shows a better model, a "
            "bound above it shows nothing."
        )
    panels = compared.panels(study)
    if apart := [one for one in panels if not one.seeds]:
        where = "; ".join(panel_title(one.size, one.unique) for one in apart)
        said.append(f"The arms share no seed on {where}: they trained on other data each, and are not ranked there.")
    elif panels:
        seeds = "; ".join(f"{panel_title(one.size, one.unique)}: {one.seeds_said}" for one in panels)
        said.append(
            f"What is compared is compared on equal seeds ({seeds}); laws are fitted to all seeds of each arm's best "
            "settings."
        )
    points = [p for arm in study.arms for panel in study.panels() for p in study.best_points(arm, *panel)]
    alone = sum(len(point.runs) == 1 for point in points)
    if alone:
        said.append(f"{alone} of {len(points)} cells have one seed: differences there may be noise.")
    deviations = [point.deviation for point in points if point.deviation is not None]
    if deviations:
        said.append(
            f"Standard deviation over seeds, where there are several: {min(deviations):.3g} to "
            f"{max(deviations):.3g} nats."
        )
    if any(
        len(study.points(arm, *panel)) > len(study.best_points(arm, *panel))
        for arm in study.arms
        for panel in study.panels()
    ):
        said.append(
            "Where a cell was trained with several settings, the one of lowest validation loss is shown. That choice "
            "uses the validation set, which flatters the arms with more settings."
        )
    if study.unfinished:
        said.append(
            f"{len(study.unfinished)} {'run is' if len(study.unfinished) == 1 else 'runs are'} not done: listed "
            "below, in no figure."
        )
    said += _unidentified(fitted)
    if not study.decontaminated:
        said.append(
            "The held-out documents were not compared with the training documents: copies of what was trained on may "
            "make repetition look better than it is (tools/data.py decontaminate)."
        )
    sizes = {run.parameters for run in study.runs}
    said.append(
        f"Sizes from {min(sizes):,.0f} to {max(sizes):,.0f} parameters (embeddings included) and "
        f"{max(run.flops for run in study.runs):.2g} FLOPs at most: nothing here says how larger models behave."
    )
    return said


def _unidentified(fitted: Sequence[Fitted]) -> list[str]:
    """Return the constants that no runs identify, arms with the same ones together."""
    by_constants: dict[str, list[str]] = {}
    for one in fitted:
        if one.analysis is not None and (unknown := one.analysis.unidentified()):
            by_constants.setdefault(", ".join(unknown), []).append(one.arm)
    return [
        f"The {'law' if len(arms) == 1 else 'laws'} of {', '.join(arms)}: these runs do not identify {names}."
        for names, arms in by_constants.items()
    ]
