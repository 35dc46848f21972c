"""The main job: train a model from a configuration.

    torchrun --nproc-per-node N -m card_scale.train CONFIG.yaml [key=value ...]

:func:`train` reads like the algorithm; :func:`main` around it parses the command line and turns errors into exit codes.
torch, DeepSpeed and Megatron are imported inside, so that ``--help`` and configuration errors answer at once.
"""

import argparse
import contextlib
import os
import sys
import time

from card_scale import config as configs
from card_scale.config import Config
from card_scale.errors import CardScaleError, ExitCode, ForeignRunError, NumericError, StopRequested
from card_scale.training.stop import StopRequest, time_limit

DEFECT = 1
"""Exit code of an error that nobody meant, which keeps its traceback; Python's own."""


def train(config: Config, stop: StopRequest, held: contextlib.ExitStack) -> str:
    """Train until the configured number of updates is made, resuming where the run directory stands.

    Args:
        config: of the run.
        stop: asked between two updates.
        held: takes what must be held until the end of the command has been recorded: the run directory's lock.

    Returns:
        What was done, in a sentence.

    Raises:
        CardScaleError: whatever ended the run early; nothing that was saved is lost.
    """
    from card_scale.distributed import process_groups
    from card_scale.distributed.launched_as import rank_variables
    from card_scale.engine.build import build_engine
    from card_scale.training import preflight, run_data
    from card_scale.training.agreement import agree_on_lock, agree_to_stop, check_same_samples
    from card_scale.training.evaluator import RunEvaluator, check_finite
    from card_scale.training.learning_rate import learning_rate
    from card_scale.training.ledger import open_ledger
    from card_scale.training.recorder import open_recorder
    from card_scale.training.run_checkpoints import RunCheckpoints
    from card_scale.training.run_directory import RunDirectory
    from card_scale.training.run_lock import RunLock
    from card_scale.training.steps import is_due, total_steps
    from card_scale.training.train_step import TrainStep

    # Everything that can be refused is refused before a process group forms.
    os.environ.update(rank_variables(os.environ))
    dims = preflight.check(config, int(os.environ.get("WORLD_SIZE", "1")))
    directory = RunDirectory(config.run.dir)
    directory.check_same_run(config)
    data = run_data.open_data(config)
    steps = total_steps(config, data.train.sample_count)
    limit = time_limit(config.run.max_hours, config.run.stop_before_end, os.environ, time.time(), time.monotonic())

    process_groups.initialize(dims, config.run.timeout_seconds)
    lock = agree_on_lock(RunLock(directory.path), held)
    if process_groups.is_main_rank():
        directory.stop.unlink(missing_ok=True)  # it was for who was running before
        # From here on, though it takes minutes until the first update may look.
        stop.watch(directory.stop, limit)
    engine = build_engine(config, dims, data.vocabulary, config.objective.attention)
    checkpoints = RunCheckpoints(engine, config, dims, data, directory.checkpoints, lock)
    start = checkpoints.resume()
    if process_groups.is_main_rank():
        directory.start(config)
        print(f"{start.opening}\nlayout: {dims.describe()}; {config.parallel.engine}; {steps} steps")
        print(data.describe_held_out(), flush=True)
    if not start.is_new and start.step >= steps:
        return f"already done: {start.step} of {steps} steps"

    recorder = open_recorder(config, directory, data, dims, total_steps=steps, start=start)
    ledger = open_ledger(config, directory, data, start.step)
    train_step = TrainStep(engine, start.objective, config)
    evaluate = RunEvaluator(
        engine, config, run_data.open_validation(config, data), run_data.open_train_samples(config, data)
    )

    def evaluate_and_record(step: int) -> None:
        results = evaluate(train_step.objective, trained=step > 0)
        check_finite(step, results)
        train_step.learn(results)
        recorder.evaluation(step, results)

    if start.is_new and not agree_to_stop(stop.poll()):
        evaluate_and_record(0)
    recorder.restart_clock(start.step)
    result = None
    with contextlib.closing(recorder), contextlib.closing(ledger), run_data.open_loader(config, data) as loader:
        for step in range(start.step + 1, steps + 1):
            if reason := agree_to_stop(stop.poll()):
                if result is not None and checkpoints.saved_step != step - 1:
                    # No log line need have looked at the last update; a checkpoint must not hold what it ruined.
                    train_step.report(step - 1, result)
                    train_step.check_weights(step - 1)
                    checkpoints.save(step - 1, train_step.objective)
                raise StopRequested(
                    f"stopped after {step - 1} of {steps} steps on {reason}; run the same command to go on"
                )
            samples = loader.rank_batch(step - 1)
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

            if logs or evaluates or saves:
                report = train_step.report(step, result)
                if logs:
                    recorder.training(step, report, rate, loader.take_waited_seconds())
                if evaluates:
                    evaluate_and_record(step)
                if saves:
                    train_step.check_weights(step)
                    checkpoints.save(step, train_step.objective)
                recorder.restart_clock(step)
            recorder.advance()
    return f"done: {steps} steps, {steps * config.train.global_batch * config.model.length} tokens"


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return (options, overrides); exits with code 2 where an option that is not its own stands before CONFIG.

    Whether such an option takes a value is not known before the configuration is read, so a value there would pass for
    the file.
    """
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="python -m card_scale.train",
        allow_abbrev=False,
        description="Train a causal autoregressive diffusion language model.",
        epilog="Overrides are group.key=value (as in the YAML file) or Megatron-LM's long options "
        "(--tensor-model-parallel-size 2). Exit codes: 0 done, 2 command line, 3 configuration, 4 data, 5 checkpoint, "
        "6 numeric, 7 hang, 8 a peer was lost, 75 stopped on request: start the same command again.",
    )
    parser.add_argument("config", help="YAML file, e.g. launchers/configs/quickstart.yaml")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, print configuration, layout and estimates; start nothing",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and end")
    options, overrides = parser.parse_known_args(arguments)
    if overrides and arguments.index(overrides[0]) < arguments.index(options.config):
        parser.error(f"{overrides[0]} stands before the configuration file; write CONFIG.yaml first, then overrides")
    return options, overrides


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options, overrides = parse(argv)
    config: Config | None = None
    with StopRequest() as stop, contextlib.ExitStack() as held:
        try:
            config = configs.load(options.config, overrides)
            if options.print_config:
                print(config.to_yaml(), end="")
                return ExitCode.DONE
            if options.dry_run:
                from card_scale.training.dry_run import dry_run

                dry_run(config)
                return ExitCode.DONE
            from card_scale import known_warnings
            from card_scale.versions import check_versions

            check_versions()
            known_warnings.silence()
            return finish(config, ExitCode.DONE, train(config, stop, held))
        except (Exception, KeyboardInterrupt) as error:
            code, reason = ending(error)
            # A dry run leaves nothing, and another run's directory keeps its own record.
            recorded = None if options.dry_run or isinstance(error, ForeignRunError) else config
            finish(recorded, code, reason + what_is_saved(config, error))
            if code == DEFECT:
                raise
            return code


def ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code and the reason that an error ends the command with; DEFECT for one nobody meant."""
    if isinstance(error, CardScaleError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.STOPPED, "interrupted"
    code = lost_peer_or_hang(error) if isinstance(error, RuntimeError) else None
    return (DEFECT, f"{type(error).__name__}: {error}") if code is None else (code, str(error))


def what_is_saved(config: Config | None, error: BaseException) -> str:
    """Return what to add to the reason of an end in the midst of training: what a next start goes on from."""
    if config is None or not isinstance(error, (NumericError, KeyboardInterrupt)):
        return ""
    from card_scale.checkpoint.directory import pointed_step
    from card_scale.training.run_directory import RunDirectory

    step = pointed_step(RunDirectory(config.run.dir).checkpoints)
    return "; nothing has been saved" if step is None else f"; the checkpoint after {step} steps is intact"


def lost_peer_or_hang(error: RuntimeError) -> ExitCode | None:
    """Return the exit code for an error of a collective: gloo and NCCL raise RuntimeError with these words."""
    text = str(error)
    if "timed out" in text.lower() or "timeout" in text.lower():
        return ExitCode.HANG
    if any(words in text for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")):
        return ExitCode.PEER_LOST
    return None


def finish(config: Config | None, code: ExitCode | int, reason: str) -> int:
    """Say and record how the command ended; return the exit code."""
    from card_scale.training.run_directory import RunDirectory

    named = os.environ.get("RANK", "0")
    rank = int(named) if named.isdecimal() else 0
    # An error of the configuration is the same on every rank; one met while running may be this rank's alone.
    if rank == 0 or code not in (ExitCode.DONE, ExitCode.STOPPED, ExitCode.CONFIGURATION):
        prefix = "" if code in (ExitCode.DONE, ExitCode.STOPPED) else "error: "
        print(f"{prefix}{reason}", file=sys.stdout if code == ExitCode.DONE else sys.stderr, flush=True)
    if config is not None and (rank == 0 or code not in (ExitCode.DONE, ExitCode.STOPPED)):
        RunDirectory(config.run.dir).write_exit(code, reason)
    return int(code)


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A peer that failed would keep the orderly teardown of the process group waiting.
    os._exit(exit_code)
