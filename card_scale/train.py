"""The main job: train a model from a configuration.

    torchrun --nproc-per-node N -m card_scale.train CONFIG.yaml [key=value ...]

:func:`train` reads like the algorithm; :func:`main` around it turns errors into exit codes.
torch, DeepSpeed and Megatron are imported inside, so that ``--help`` and configuration errors answer at once.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from card_scale import config as configs
from card_scale import faults
from card_scale.cli import run_tool
from card_scale.config import Config
from card_scale.distributed.launched_as import is_restart, job_of, rank_variables
from card_scale.errors import ConfigurationError, ExitCode, ForeignRunError, NumericError, OwnRankError, StopRequested
from card_scale.training import exit_record
from card_scale.training.command_line import parse
from card_scale.training.ending import DEFECT, end_hanging, ending, finish, what_is_saved
from card_scale.training.exit_record import cause_of_stop
from card_scale.training.stop import StopRequest, time_limit

if TYPE_CHECKING:
    from card_scale.data.loader import GlobalBatchLoader
    from card_scale.distributed.parallel_dims import ParallelDims
    from card_scale.engine.base import ShardingEngine
    from card_scale.training.damaged_samples import DamagedSamples
    from card_scale.training.evaluator import RunEvaluator
    from card_scale.training.run_checkpoints import RunCheckpoints, Start
    from card_scale.training.run_data import RunData
    from card_scale.training.run_directory import RunDirectory
    from card_scale.training.train_step import StepReport
    from card_scale.training.watchdog import Watchdog


def train(config: Config, stop: StopRequest, held: contextlib.ExitStack, *, from_scratch: bool = False) -> str:
    """Train until the configured number of updates is made, resuming where the run directory stands.

    Args:
        config: of the run.
        stop: asked between two updates.
        held: takes what must be held until the end of the command has been recorded: the run directory's lock.
        from_scratch: set aside what an earlier run has left in the run directory.

    Returns:
        What was done, in a sentence.

    Raises:
        CardScaleError: whatever ended the run early; nothing that was saved is lost.
    """
    from card_scale.distributed import process_groups
    from card_scale.engine.build import build_engine, compute_dtype
    from card_scale.training import memory_fit, preflight, run_data
    from card_scale.training.agreement import agree_on_evaluated, agree_on_lock, all_peers, begin_anew
    from card_scale.training.damaged_samples import DamagedSamples
    from card_scale.training.evaluator import RunEvaluator
    from card_scale.training.guard import RollBack
    from card_scale.training.run_checkpoints import RunCheckpoints
    from card_scale.training.run_directory import RunDirectory
    from card_scale.training.run_lock import RunLock
    from card_scale.training.steps import total_steps, warnings
    from card_scale.training.watchdog import Watchdog

    # Everything that can be refused is refused before a process group forms.
    faults.check()
    dims = preflight.check(config, int(os.environ.get("WORLD_SIZE", "1")))
    directory = RunDirectory(config.run.dir)
    directory.check_usable()
    if not from_scratch:
        directory.check_same_run(config)  # else once it is known whether it is set aside
    data = run_data.open_data(config)
    config = run_data.with_mask_id(config, data)
    steps = total_steps(config, data.train.sample_count)
    limit = time_limit(config.run.max_hours, config.run.stop_before_end, os.environ, time.time(), time.monotonic())

    process_groups.initialize(dims, config.run.timeout_seconds)
    lock = agree_on_lock(RunLock(directory.path), held)
    if from_scratch:
        begin_anew(directory, config, job_of(os.environ), is_restart(os.environ))
    if process_groups.is_main_rank():
        directory.take()
        # From here on, though it takes minutes until the first update may look.
        stop.watch(directory.stop, limit)
    watchdog = held.enter_context(
        Watchdog(
            directory.silent,
            config.watchdog,
            config.run.timeout_seconds,
            process_groups.global_rank(),
            all_peers(),
            lambda reason: end_hanging(config, reason),
        )
    )

    def explained() -> contextlib.AbstractContextManager[None]:
        return memory_fit.explained(config, dims.world_size, data.vocabulary.padded, lambda: watchdog.place)

    if process_groups.is_main_rank():
        print("building the model", flush=True)
    faults.reach("start")
    with explained():
        engine = build_engine(config, dims, data.vocabulary, config.objective.attention)
    engine.on_pass = watchdog.beat
    evaluate = RunEvaluator(
        engine, config, run_data.open_validation(config, data), run_data.open_train_samples(config, data)
    )
    checkpoints = RunCheckpoints(engine, config, dims, data, directory, lock)
    with contextlib.ExitStack() as open_things:
        # However the updates end, the watchdog knows that a save in flight is waited for.
        open_things.callback(checkpoints.close)
        open_things.callback(lambda: watchdog.enter("save", 0))
        loader = open_things.enter_context(run_data.open_loader(config, data))
        start = checkpoints.resume()
        if process_groups.is_main_rank():
            directory.start(config)
            print(f"{start.opening}\nlayout: {dims.describe()}; {config.parallel.engine}; {steps} steps")
            attention = engine.chunks[0].attention
            print(f"attention: {attention.describe(config.model, dims.tensor, compute_dtype(config))}")
            for line in warnings(config, steps, data.train.sample_count):
                print(line)
            print(data.describe_validation(config.data.validation_samples))
            print(data.describe_held_out(), flush=True)
        if not start.is_new and (start.step > steps or (start.step == steps and agree_on_evaluated(directory, steps))):
            return f"already done: {start.step} steps are made, {steps} are asked for"
        damaged = DamagedSamples(config.data.skip_damaged, loader.problems)
        job = Job(config, dims, directory, data, loader, damaged, engine, evaluate, checkpoints, watchdog, stop, steps)
        rollbacks = 0
        while True:
            try:
                with explained():
                    return go_on(job, start)
            except RollBack as bad:
                rollbacks += 1
                if rollbacks > config.guard.rollbacks:
                    raise NumericError(
                        f"{bad}; guard.rollbacks allows {config.guard.rollbacks}. Lower optimizer.lr"
                    ) from bad
                watchdog.enter("start", bad.step)
                start = checkpoints.roll_back(bad, start.passed_over)
                if process_groups.is_main_rank():
                    print(f"warning: {start.opening}", file=sys.stderr, flush=True)


class Job(NamedTuple):
    """What the updates of a run need."""

    config: Config
    dims: "ParallelDims"
    directory: "RunDirectory"
    data: "RunData"
    loader: "GlobalBatchLoader"
    damaged: "DamagedSamples"
    engine: "ShardingEngine"
    evaluate: "RunEvaluator"
    checkpoints: "RunCheckpoints"
    watchdog: "Watchdog"
    stop: StopRequest
    steps: int
    """Updates of the whole run."""


def go_on(job: Job, start: "Start") -> str:
    """Make the updates from ``start`` on; return what was done, in a sentence. Raises as :func:`train`, or RollBack."""
    from card_scale.training.agreement import agree_to_stop, check_same_samples
    from card_scale.training.evaluator import check_finite
    from card_scale.training.learning_rate import learning_rate
    from card_scale.training.ledger import open_ledger, record_refusals
    from card_scale.training.recorder import open_recorder
    from card_scale.training.steps import is_due
    from card_scale.training.stragglers import Stragglers
    from card_scale.training.train_step import TrainStep

    config, checkpoints, steps = job.config, job.checkpoints, job.steps
    recorder = open_recorder(config, job.directory, job.data, job.dims, total_steps=steps, start=start)
    ledger = open_ledger(config, job.directory, job.data, start)
    train_step = TrainStep(job.engine, start.objective, config, start.state)

    def evaluate_and_record(step: int) -> None:
        job.watchdog.enter("evaluation", step)
        faults.reach("evaluation", step)
        began = time.monotonic()
        # What is found after updates belongs to their checkpoint; before the first one nothing is lost by a stop.
        results = job.evaluate(train_step.objective, step, job.stop.poll if step == 0 else None)
        if results is None:
            return
        check_finite(step, results)
        train_step.learn(results)
        recorder.evaluation(step, results, time.monotonic() - began)

    def save(step: int, *, must: bool) -> None:
        job.watchdog.enter("save", step)
        train_step.check_weights(step)
        checkpoints.save(step, train_step.objective, train_step.state(), start.passed_over, must=must)

    def note_refusals(report: "StepReport") -> None:
        record_refusals(ledger, report.refusals.steps, start.passed_over, config.train.global_batch)
        recorder.refusals(report)

    stragglers = Stragglers()
    result = None
    with contextlib.closing(recorder), contextlib.closing(ledger):
        if start.is_new and not agree_to_stop(job.stop.poll()):
            evaluate_and_record(0)
        elif start.step == steps:  # it was stopped where it is now to end, without its last evaluation
            evaluate_and_record(steps)
        recorder.restart_clock(start.step)
        for step in range(start.step + 1, steps + 1):
            if reason := agree_to_stop(job.stop.poll()):
                job.watchdog.enter("save", step - 1)
                checkpoints.wait()
                if result is not None and checkpoints.saved_step != step - 1:
                    # No log line need have looked at the last update; a checkpoint must not hold what it ruined.
                    note_refusals(train_step.report(step - 1, result, is_logged=False))
                    save(step - 1, must=True)
                raise StopRequested(
                    f"stopped after {step - 1} of {steps} steps on {reason}; run the same command to go on"
                )
            stragglers.begin()
            job.watchdog.enter("start" if result is None else "data", step)
            faults.reach("step.begin", step)
            read = job.loader.rank_batch(step - 1, start.passed_over)
            stragglers.ready()
            job.watchdog.enter("start" if result is None else "step", step)
            samples = job.damaged.leave_out(read, step)
            logs, evaluates, saves = (
                is_due(step, every, steps)
                for every in (config.train.log_every, config.train.eval_every, config.train.save_every)
            )
            if step == start.step + 1 or logs:
                check_same_samples(samples, step)

            rate = learning_rate(
                step - 1,
                schedule=config.optimizer.schedule,
                lr=config.optimizer.lr,
                min_lr=config.optimizer.min_lr,
                warmup_steps=config.optimizer.warmup_steps,
                total_steps=steps,
            )
            result = train_step(samples, rate)
            ledger.trained(step, samples)
            faults.reach("step.end", step)

            if logs or evaluates or saves:
                report = train_step.report(step, result, is_logged=logs)
                note_refusals(report)
                if logs:
                    waited = job.loader.take_waited_seconds()
                    recorder.training(report, rate, waited, job.damaged.left_out, stragglers.compare())
                if evaluates:
                    evaluate_and_record(step)
                if saves:
                    save(step, must=step == steps)
                recorder.restart_clock(step)
            recorder.advance()
    return f"done: {steps} steps, {steps * config.train.global_batch * config.model.length} tokens"


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options, overrides = parse(argv)
    if options.print_config or options.dry_run:
        return run_tool(lambda: show(options, overrides))
    config: Config | None = None
    earlier: bytes | None = None
    with StopRequest(lambda: cause_of_stop(os.environ)) as stop, contextlib.ExitStack() as held:
        try:
            config = configs.load(options.config, overrides)
            earlier = exit_record.content(Path(config.run.dir, exit_record.NAME))
            os.environ.update(rank_variables(os.environ))
            if os.environ.get("RANK", "0") == "0":
                print("loading the libraries", flush=True)  # some ten seconds
            from card_scale import known_warnings
            from card_scale.versions import check_versions

            check_versions()
            known_warnings.silence()
            done = train(config, stop, held, from_scratch=options.from_scratch)
            return finish(config, ExitCode.DONE, done, of_all_ranks=True)
        except (Exception, KeyboardInterrupt) as error:
            code, reason = ending(error)
            # Another run's directory keeps its own record.
            recorded = None if isinstance(error, ForeignRunError) else config
            of_all_ranks = code == ExitCode.STOPPED or (
                isinstance(error, ConfigurationError) and not isinstance(error, OwnRankError)
            )
            finish(recorded, code, reason + what_is_saved(config, error), of_all_ranks=of_all_ranks, earlier=earlier)
            if config is None and (stated := configs.stated_run_dir(options.config, overrides)):
                exit_record.supersede(Path(stated, exit_record.NAME), code, reason)
            if code == DEFECT:
                raise
            return code


def show(options: argparse.Namespace, overrides: list[str]) -> None:
    """Print the configuration, or what its run would be; leave nothing. Under a launcher the first rank speaks."""
    config = configs.load(options.config, overrides)
    lines = [config.to_yaml().rstrip()]
    if options.dry_run:
        from card_scale import known_warnings

        known_warnings.silence()
        from card_scale.training.dry_run import Assumptions, dry_run

        assumed = Assumptions(
            options.ranks,
            options.from_scratch,
            options.device_memory,
            options.tokens_per_second,
            options.vocabulary_size,
        )
        lines = [*dry_run(config, assumed), "configuration:", *lines]
    if os.environ.get("RANK", "0") == "0":
        print("\n".join(lines))


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A peer that failed would keep the orderly teardown of the process group waiting.
    os._exit(exit_code)
