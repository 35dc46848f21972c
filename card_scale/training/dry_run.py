"""``--dry-run``: check everything a run needs and print what it would be, without starting it."""

import os

from card_scale.config import Config
from card_scale.distributed import cpu_backend
from card_scale.distributed import parallel_dims as topology
from card_scale.engine.deepspeed import settings as deepspeed_json
from card_scale.model.attention import resolve_backend
from card_scale.model.gpt import padded_vocabulary
from card_scale.training import job
from card_scale.training.run_directory import RunDirectory
from card_scale.training.steps import total_steps
from card_scale.training.throughput import counts_of, flops_of
from card_scale.versions import check_versions

_BYTES_MASTER_AND_MOMENTS = 12
"""float32 weight and both Adam moments."""


def dry_run(config: Config) -> None:
    """Validate the run and print configuration, layout, parameters, memory and work; raises what the run would raise.

    The world size is WORLD_SIZE, or the smallest that holds the layout.
    """
    check_versions()
    smallest = config.parallel.tensor * config.parallel.pipeline
    world_size = int(os.environ.get("WORLD_SIZE", smallest))
    layout = topology.plan(config, world_size)
    resolve_backend(job.objective_of(config).attention, config.model.attention_backend, cpu_backend.device().type)
    if config.parallel.engine == "deepspeed":
        deepspeed_json.check(config, layout.data)
    RunDirectory(config.run.dir).check_same_run(config)
    data = job.open_data(config)
    steps = total_steps(config, data.train.sample_count)
    model = config.model
    vocabulary_rows = padded_vocabulary(data.vocabulary.size)
    counts, flops = counts_of(model, vocabulary_rows), flops_of(config, vocabulary_rows)
    tokens = steps * config.train.global_batch * model.length
    print(config.to_yaml(), end="")
    print("---")
    print(f"ranks: {world_size} ({layout.describe()})")
    print(f"parameters: {counts.total:,} (of which embeddings {counts.embedding + counts.head:,})")
    print(f"model states per rank: about {state_bytes(config, layout, counts.total) / 2**30:.2f} GiB")
    print(f"activations kept per rank: about {activation_bytes(config, layout) / 2**30:.2f} GiB")
    print(
        f"data: {data.train.token_count:,} training tokens in {data.train.sample_count:,} samples; "
        f"{data.validation.sample_count:,} validation samples"
    )
    print(data.describe_held_out())
    print(
        f"work: {steps:,} steps, {tokens:,} tokens ({tokens / (data.train.sample_count * model.length):.2f} epochs), "
        f"{flops.causal * tokens:.3g} model FLOPs (of visible pairs)"
    )


def state_bytes(config: Config, layout: topology.Topology, parameters: int) -> float:
    """Return bytes of weights, gradients and optimizer states on a rank, of an even share of the parameters.

    Per parameter (ZeRO paper, table 1): the compute weight (fp32: the master itself), a float32 gradient, and float32
    master and moments; each divided by the data-parallel size once its stage shards it. The largest layer, gathered for
    use under full sharding, is left out.
    """
    stage = 3 if config.parallel.engine == "fsdp2" else deepspeed_json.zero_stage(config)
    moments = _BYTES_MASTER_AND_MOMENTS + (4 if config.optimizer.ema else 0)
    weights = 2 if config.train.precision == "bf16" else 4 if stage in (1, 2, 3) else 0
    share = parameters / (layout.tensor * layout.pipeline)
    return share * (
        weights / (layout.data if stage == 3 else 1)
        + 4 / (layout.data if stage >= 2 else 1)
        + moments / (layout.data if stage >= 1 else 1)
    )


def activation_bytes(config: Config, layout: topology.Topology) -> float:
    """Return bytes of activations that the first pipeline stage keeps for the backward pass.

    Per token and layer about 10 hidden-sized and 4 ffn-sized tensors (flash attention, no dropout), or the layer's
    input alone with recomputation; as many micro-batches as there are stages are in flight under 1F1B.
    """
    model = config.model
    item = 2 if config.train.precision == "bf16" else 4
    per_layer = model.hidden if config.parallel.recompute == "full" else 10 * model.hidden + 4 * model.ffn
    inputs = 2 * model.length if config.objective.name == "bd3lm" else model.length
    tokens = (
        config.train.micro_batch
        * inputs
        * min(layout.pipeline, config.train.global_batch // (config.train.micro_batch * layout.data))
    )
    shards = layout.tensor if layout.sequence else 1
    return tokens * per_layer * model.layers / layout.pipeline * item / shards
