"""The step-latency benchmark: arms over models and lengths, one engine per model, results as plain dictionaries."""

import functools
import gc
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import yaml

from card_scale.benchmark.arms import Arm, comparisons, config_of, with_sizes
from card_scale.benchmark.decomposition import explain
from card_scale.benchmark.device import gpu_state, measured_gemm_flops
from card_scale.benchmark.measurement import ArmTimes, measure
from card_scale.benchmark.memory_check import check_fits, free_memory
from card_scale.benchmark.micro_batch import best_micro_batches
from card_scale.benchmark.peak_memory import MEANINGS
from card_scale.benchmark.profiling import step_profile
from card_scale.benchmark.runner import ArmRunner, random_batches
from card_scale.config import Config
from card_scale.cost.devices import peak_flops
from card_scale.cost.flops import Work, training_work
from card_scale.cost.memory import step_memory
from card_scale.data.tokenizer import MASK_ID
from card_scale.distributed import parallel_dims
from card_scale.distributed.device import current_device
from card_scale.distributed.parallel_dims import ParallelDims
from card_scale.engine.base import ShardingEngine
from card_scale.engine.build import build_engine, compute_dtype
from card_scale.engine.selection import compiles_layers, engine_kind
from card_scale.errors import ConfigurationError
from card_scale.model.layer import MOST_COMPILED_VERSIONS
from card_scale.model.vocabulary import Vocabulary
from card_scale.training import preflight


class Settings(NamedTuple):
    """What is measured of every model and length."""

    arms: list[Arm]
    vocabulary: int
    """Pieces of the tokenizer."""
    steps: int
    """Counted steps of each arm."""
    warm_up: int
    """Steps of each arm before them, at least 2."""
    memory_cap: float | None
    """Bytes under which each arm's largest micro-batch is sought and timed too; None: not."""
    profile: bool
    """Whether to profile each arm."""


class Case(NamedTuple):
    """A model at one length."""

    model: str
    """Name of the run configuration."""
    config: Config


def cases(
    models: Sequence[tuple[str, Config]], lengths: Sequence[int], tokens: int | None, world_size: int
) -> list[Case]:
    """Return every model at every length (none given: its own).

    With ``tokens`` a micro-batch holds so many clean tokens, and a step one micro-batch per rank and pipeline stage;
    else both are the model's own. Raises ConfigurationError if a length does not divide ``tokens``, or if two models
    have one name.
    """
    names = [name for name, _ in models]
    if len(set(names)) < len(names):
        raise ConfigurationError(f"results are told apart by the configuration's name, but two are alike: {names}")
    found = []
    for name, config in models:
        micro_batch, global_batch = config.train.micro_batch, config.train.global_batch
        for length in lengths or [config.model.length]:
            if tokens is not None:
                if tokens % length:
                    raise ConfigurationError(f"--tokens {tokens} is not a multiple of length {length}")
                micro_batch = tokens // length
                global_batch = micro_batch * max(1, world_size // config.parallel.tensor)
            sizes = with_sizes(config, length=length, micro_batch=micro_batch, global_batch=global_batch)
            found.append(Case(name, sizes))
    return found


def memory_cap(gib: float | None) -> float | None:
    """Return the bytes of ``--memory-gib``: as given, None for 0; by default 90 % of a GPU, and None on a CPU."""
    if gib is None:
        return 0.9 * torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    return gib * 2**30 if gib else None


def check(found: Sequence[Case], settings: Settings, world_size: int) -> ParallelDims:
    """Return the layout of all cases, once nothing stands against running them; nothing is allocated.

    Raises ConfigurationError: an arm that a case or the device does not have, more memory than there is, models of
    different layouts.
    """
    memory = free_memory()
    layouts = {}
    for case in found:
        layout = parallel_dims.plan(case.config, world_size)
        layouts[layout] = case.model
        for arm in settings.arms:
            preflight.check(config_of(arm, case.config), world_size)
        for arm in settings.arms:
            check_fits(arm, case.config, layout, Vocabulary(settings.vocabulary, MASK_ID).padded, memory)
    if len(layouts) > 1:
        listed = "; ".join(f"{model}: {layout.describe()}" for layout, model in layouts.items())
        raise ConfigurationError(f"one process forms one layout, but these models have several ({listed})")
    return layout


def run(
    found: Sequence[Case], settings: Settings, layout: ParallelDims
) -> Iterator[tuple[dict, Callable[[], dict[str, str]]]]:
    """Measure the cases; yield for each its result, ready for JSON, and what makes the profiles by arm. Collective.

    The process groups of ``layout`` must have formed. One engine serves all lengths of a model.
    """
    # Each arm's attention is one more version of the same compiled function; past the limit it would silently run
    # uncompiled, and be measured so.
    torch._dynamo.config.recompile_limit = MOST_COMPILED_VERSIONS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for _, group in itertools.groupby(found, key=lambda case: case.model):
        of_one_model = list(group)
        config = of_one_model[0].config
        attention = config_of(settings.arms[0], config).objective.attention
        engine = build_engine(config, layout, Vocabulary(settings.vocabulary, MASK_ID), attention)
        for case in of_one_model:
            torch.compiler.reset()  # no two cases share a shape, hence no compiled code
            yield _measured(engine, case, settings, layout), functools.partial(_profiles, engine, case, settings)
        del engine  # before the next model's takes memory
        gc.collect()
        torch.cuda.empty_cache()


def _measured(engine: ShardingEngine, case: Case, settings: Settings, layout: ParallelDims) -> dict[str, Any]:
    config, rows, device = case.config, Vocabulary(settings.vocabulary, MASK_ID).padded, current_device()
    bf16, is_gpu = config.train.precision == "bf16", device.type == "cuda"
    times = measure(engine, settings.arms, config, settings.vocabulary, steps=settings.steps, warm_up=settings.warm_up)
    states = step_memory(config, layout, engine_kind(config).zero_stage(config), rows).states
    return {
        "model": case.model,
        "layout": layout.describe(),
        "engine": config.parallel.engine,
        "compiled_layers": compiles_layers(config, device.type),
        "state_bytes_estimate": states,
        "gpu_state": gpu_state(device),
        "gemm_flops_per_second": measured_gemm_flops(device, compute_dtype(config)),
        "peak_flops_per_second": peak_flops(torch.cuda.get_device_name(device)) if bf16 and is_gpu else None,
        "peak_memory_is": MEANINGS[device.type],
        "config": yaml.safe_load(config.to_yaml()),
        **_case_result(config, settings, times, rows),
        "best_micro_batch": _best(engine, case, settings, layout, states, rows),
    }


def _best(
    engine: ShardingEngine, case: Case, settings: Settings, layout: ParallelDims, states: float, rows: int
) -> dict[str, Any] | None:
    """Measure each arm with its largest micro-batch under the cap; None without one, or where it did not do."""
    if settings.memory_cap is None:
        return None
    config, limits = case.config, {"states": states, "cap": settings.memory_cap}
    sizes = best_micro_batches(engine, settings.arms, config, settings.vocabulary, layout, **limits)
    in_flight = max(sizes.values()) * layout.data * layout.pipeline
    smallest = min(sizes.values())
    common = with_sizes(config, length=config.model.length, micro_batch=smallest, global_batch=in_flight)
    try:
        times = measure(
            engine,
            settings.arms,
            common,
            settings.vocabulary,
            steps=max(1, settings.steps // 5),  # these steps are long: fewer of them say as much
            warm_up=settings.warm_up,
            micro_batches=sizes,
        )
    except torch.OutOfMemoryError as error:
        if dist.get_world_size() > 1:
            raise  # the other ranks wait for this one
        # What was measured before must not be lost by it.
        print(f"warning: micro-batches of {sizes} were estimated to fit: {error}", file=sys.stderr)
        return None
    return {"cap_bytes": settings.memory_cap, **_case_result(common, settings, times, rows)}


def _case_result(config: Config, settings: Settings, times: dict[str, ArmTimes], rows: int) -> dict[str, Any]:
    configs = {arm.name: config_of(arm, config) for arm in settings.arms}
    pairs = comparisons(settings.arms)
    return {
        "length": config.model.length,
        "global_batch": config.train.global_batch,
        "tokens_per_step": config.train.global_batch * config.model.length,
        "arms": {arm.name: _arm_result(arm, configs[arm.name], times[arm.name], rows) for arm in settings.arms},
        "comparisons": [_comparison(arm, base, configs, times, rows) for arm, base in pairs],
    }


def _arm_result(arm: Arm, config: Config, times: ArmTimes, rows: int) -> dict[str, Any]:
    step, parts = times.summary(), times.part_medians()
    tokens = config.train.global_batch * config.model.length
    work = _step_work(config, rows)
    return {
        **arm._asdict(),
        "attention_backend": times.backend,
        "micro_batch": times.micro_batch,
        "step_seconds": step._asdict(),
        "forward_seconds": times.forward()._asdict(),
        "forward_backward_seconds": times.forward_backward()._asdict(),
        "phase_seconds": times.phase_medians(),
        "part_seconds": parts,
        "parts_over_step": sum(parts.values()) / step.median,
        "peak_bytes": times.peak_bytes,
        "tokens_per_second": tokens / step.median,
        "supervised_tokens_per_step": tokens * times.supervised_share,
        "supervised_tokens_per_second": tokens * times.supervised_share / step.median,
        "flops": {**work._asdict(), "total": work.total},
        "flops_per_second_and_device": work.total / step.median / dist.get_world_size(),
        "samples_seconds": _rounded({"step": times.step, "phases": times.phases, "parts": times.parts}),
    }


def _step_work(config: Config, rows: int) -> Work:
    """Return what one step of ``config``'s objective needs over the global batch."""
    tokens = config.train.global_batch * config.model.length
    return Work(*(tokens * part for part in training_work(config.model, config.objective.attention, rows)))


def _rounded(samples: Any) -> Any:
    """Return the samples to a tenth of a microsecond: a long file is not more exact."""
    if isinstance(samples, dict):
        return {name: _rounded(part) for name, part in samples.items()}
    return [_rounded(part) for part in samples] if isinstance(samples, list) else round(samples, 7)


def _comparison(
    arm: Arm, base: Arm, configs: dict[str, Config], times: dict[str, ArmTimes], rows: int
) -> dict[str, Any]:
    of_arm, of_base = times[arm.name], times[base.name]
    explanation = explain(
        of_arm.part_medians(),
        of_base.part_medians(),
        step=of_arm.summary().median,
        base_step=of_base.summary().median,
        work=_step_work(configs[arm.name], rows),
        base_work=_step_work(configs[base.name], rows),
    )
    return {
        "arm": arm.name,
        "base": base.name,
        "paired_ratio": of_arm.ratio_to(of_base)._asdict(),
        **explanation._asdict(),
    }


def _profiles(engine: ShardingEngine, case: Case, settings: Settings) -> dict[str, str]:
    """Return a profile of each arm by name, or none."""
    if not settings.profile:
        return {}
    batch = random_batches(case.config, settings.vocabulary)(0)
    return {arm.name: step_profile(ArmRunner(engine, arm, case.config), batch) for arm in settings.arms}
