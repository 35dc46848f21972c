"""The report's numbers as TensorBoard curves over epochs; one run for each arm (bounds say so), size and subset."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from card_scale.studies.report.finished_runs import Study, passes_of


def write_scalars(study: Study, directory: Path) -> None:
    """Write the curves of the figures.

    Tags: ``repetition/validation_loss``, ``repetition/gap`` and ``repetition/flops`` over whole epochs,
    ``repetition/loss_by_pass`` over the passes of the longest run. Points are those of the whole ladder: the best
    setting of a cell, mean over the seeds that all points of the curve share.
    """
    for size, unique in study.panels():
        for arm in study.arms:
            points = study.curve(arm, size, unique)
            if not points:
                continue
            name = f"{arm}-bound" if study.is_bound(arm) else arm
            writer = SummaryWriter(str(directory / f"{name}-{size}-U{unique:.0f}"))
            for point in points:
                epochs = round(point.first.epochs)
                writer.add_scalar("repetition/validation_loss", point.loss, epochs)
                writer.add_scalar("repetition/flops", point.first.flops, epochs)
                gap = point.mean("gap")
                if gap is not None:
                    writer.add_scalar("repetition/gap", gap, epochs)
            for number, loss in passes_of(study, points[-1].first.name):
                writer.add_scalar("repetition/loss_by_pass", loss, number)
            writer.close()
