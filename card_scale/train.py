"""The main job: train a model from a configuration.

    torchrun --nproc-per-node N -m card_scale.train CONFIG.yaml [key=value ...]

:func:`train` reads like the algorithm; :func:`main` around it parses the command line and turns errors into exit codes.
torch, DeepSpeed and Megatron are imported inside, so that ``--help`` and configuration errors answer at once.
"""

import argparse
import os
import sys
import time

from card_scale import config as configs
from card_scale.config import Config
from card_scale.engine.deepspeed import settings as deepspeed_json
from card_scale.errors import (
    CardScaleError,
    ExitCode,
    NumericError,
    StopRequested,
)
from card_scale.training.stop import StopRequest


def train(config: Config, stop: StopRequest) -> str:
    """Train until the configured number of updates is made, resuming where the run directory stands.

    Returns:
        What was done, in a sentence.

    Raises:
        CardScaleError: whatever ended the run early; nothing that was saved is lost.
    """
    import torch.distributed as dist

    from card_scale.distributed import cpu_backend, process_groups
    from card_scale.distributed import parallel_dims as topology
    from card_scale.engine.build import build_engine
    from card_scale.model.attention import resolve_backend
    from card_scale.training import job
    from card_scale.training.evaluation import Evaluation
    from card_scale.training.learning_rate import learning_rate
    from card_scale.training.recorder import Recorder
    from card_scale.training.run_directory import RunDirectory
    from card_scale.training.steps import total_steps
    from card_scale.training.update import Update

    # Everything that can be refused is refused before a process group forms.
    layout = topology.plan(config, int(os.environ.get("WORLD_SIZE", "1")))
    if config.parallel.engine == "deepspeed":
        deepspeed_json.check(config, layout.data)
    directory = RunDirectory(config.run.dir)
    directory.check_same_run(config)
    data = job.open_data(config)
    steps = total_steps(config, data.train.sample_count)
    objective = job.objective_of(config)
    resolve_backend(objective.attention, config.model.attention_backend, cpu_backend.device().type)

    process_groups.form(layout, config.run.timeout_seconds)
    is_main = dist.get_rank() == 0
    engine = build_engine(config, data.vocabulary, objective.attention)
    done, objective, opening = job.resume(engine, directory, data, objective)
    if is_main:
        directory.start(config)
        print(f"{opening}\nlayout: {layout.describe()}; {config.parallel.engine}; {steps} steps")
        print(data.describe_held_out(), flush=True)
    if done is not None and done >= steps:
        return f"already done: {done} of {steps} steps"

    update = Update(engine, objective, config)
    evaluate = Evaluation(engine, objective, config, job.open_validation(config, data))
    evaluate_on_train = Evaluation(engine, objective, config, job.open_train_samples(config, data))
    recorder = None
    if is_main:
        recorder = Recorder(
            config,
            directory,
            vocabulary_size=data.vocabulary.size,
            samples_per_epoch=data.train.sample_count,
            total_steps=steps,
            world_size=layout.world_size,
            resume_step=done,
        )

    def evaluate_and_record(step: int) -> None:
        results = evaluate()
        if config.data.train_samples:
            train_nll = evaluate_on_train.likelihood()["validation_nll"]
            results |= {"train_nll": train_nll, "repetition/gap": results["validation_nll"] - train_nll}
        update.objective = job.adopt_interval(update.objective, results)
        if config.optimizer.ema and step:
            engine.swap_averaged()
            results["ema/validation_nll"] = evaluate.likelihood()["validation_nll"]
            engine.swap_averaged()
        if recorder:
            recorder.evaluation(step, results)
            recorder.restart_clock(step)

    start, saved_at, waited = done or 0, done, 0.0
    if done is None and not job.agree_to_stop(stop.requested):
        evaluate_and_record(0)
    if recorder:
        recorder.restart_clock(start)
    interval_start, last_update = start, None
    with job.open_loader(config, data) as loader:
        for step in range(start + 1, steps + 1):
            if job.agree_to_stop(stop.requested):
                if last_update is not None and saved_at != step - 1:
                    # No log line need have looked at the last update; a checkpoint must not hold what it ruined.
                    local_sums, gradient_norm = last_update
                    check_finite(step - 1, update.report(local_sums).loss, float(gradient_norm))
                    job.save_checkpoint(engine, update.objective, directory, config, data, step - 1, layout.describe())
                raise StopRequested(
                    f"stopped after {step - 1} of {steps} steps on {stop.reason or 'the request of another rank'}; "
                    "run the same command to go on"
                )
            asked = time.monotonic()
            batch = loader.rank_batch(step - 1)
            waited += time.monotonic() - asked

            is_last = step == steps
            logs = is_last or step % config.train.log_every == 0
            evaluates = is_last or (config.train.eval_every and step % config.train.eval_every == 0)
            saves = is_last or (config.train.save_every and step % config.train.save_every == 0)
            if step == start + 1 or logs:
                job.check_same_batch(batch, step)

            rate = learning_rate(
                step - 1,
                schedule=config.optimizer.schedule,
                lr=config.optimizer.lr,
                min_lr=config.optimizer.min_lr,
                warmup_steps=config.optimizer.warmup_steps,
                total_steps=steps,
            )
            local_sums, gradient_norm = last_update = update(batch, rate)

            if logs or evaluates or saves:
                sums, norm = update.report(local_sums), float(gradient_norm)
                check_finite(step, sums.loss, norm)
                if recorder and logs:
                    recorder.training(step, sums, norm, rate, waited / (step - interval_start))
                    recorder.restart_clock(step)
                if logs:
                    interval_start, waited = step, 0.0
            if recorder:
                recorder.advance()
            if evaluates:
                evaluate_and_record(step)
            if saves:
                job.save_checkpoint(engine, update.objective, directory, config, data, step, layout.describe())
                saved_at = step
                if recorder:
                    recorder.restart_clock(step)
    if recorder:
        recorder.close()
    return f"done: {steps} steps, {steps * config.train.global_batch * config.model.length} tokens"


def check_finite(step: int, loss: float, gradient_norm: float) -> None:
    """Raise NumericError if the loss or the gradient norm of an update is not finite."""
    for name, value in (("loss", loss), ("gradient norm", gradient_norm)):
        if value != value or value in (float("inf"), float("-inf")):
            raise NumericError(
                f"step {step}: the {name} is {value}; the last checkpoint is intact. Lower optimizer.lr "
                "or look at the data of this step"
            )


def parse(argv: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Return (options, overrides)."""
    parser = argparse.ArgumentParser(
        prog="python -m card_scale.train",
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
    return parser.parse_known_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options, overrides = parse(argv)
    config: Config | None = None
    with StopRequest() as stop:
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
            return finish(config, ExitCode.DONE, train(config, stop))
        except CardScaleError as error:
            return finish(config, error.exit_code, str(error))
        except KeyboardInterrupt:
            return finish(config, ExitCode.STOPPED, "interrupted; the last checkpoint is intact")
        except RuntimeError as error:
            code = lost_peer_or_hang(error)
            if code is None:
                finish(config, 1, f"{type(error).__name__}: {error}")
                raise
            return finish(config, code, str(error))
        except Exception as error:
            finish(config, 1, f"{type(error).__name__}: {error}")
            raise


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

    rank = int(os.environ.get("RANK", "0"))
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
