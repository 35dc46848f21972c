"""Everything this project needs from DeepSpeed beyond its public interface, with the reason. Seen in 0.19.8."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace

import deepspeed
import deepspeed.comm
import deepspeed.runtime.zero.partition_parameters as partition_parameters
import deepspeed.runtime.zero.partitioned_param_coordinator as partitioned_param_coordinator
import deepspeed.runtime.zero.stage3 as stage3
import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.utils import safe_set_full_grad, safe_set_local_grad
from torch import nn

from card_scale.distributed import process_groups
from card_scale.distributed.device import current_device
from card_scale.model.gpt import GPT
from card_scale.model.layer import DecoderLayer
from card_scale.model.weights import LogicalWeight


def prepare() -> None:
    """Set DeepSpeed up inside a formed job. Call once per process, before an engine is made."""
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # On CPU DeepSpeed compiles a shared-memory all-reduce for inference: half a minute on a fresh machine, behind a
    # lock file that a killed process leaves locked. Training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.comm.init_distributed(
        "nccl" if torch.cuda.is_available() else "gloo", dist_init_required=False, verbose=False
    )
    # ZeRO-3 checks its parameter trace by broadcasts over the WORLD group: a hang as soon as pipeline stages differ.
    for module in (partition_parameters, partitioned_param_coordinator, stage3):
        module.assert_ints_same_as_other_ranks = _assert_same_in_data_group


def _assert_same_in_data_group(numbers: list[int]) -> None:
    """DeepSpeed's check of its parameter order, over the ranks that share the order."""
    group = process_groups.data_group()
    mine = torch.tensor(
        numbers, dtype=torch.int64, device=deepspeed.accelerator.get_accelerator().current_device_name()
    )
    first = mine.clone()
    torch.distributed.broadcast(first, torch.distributed.get_process_group_ranks(group)[0], group=group)
    if not torch.equal(mine, first):
        raise RuntimeError(f"ZeRO-3's parameter order differs within the data-parallel group: {numbers} here")


def model_parallel_unit() -> SimpleNamespace:
    """Return the ``mpu`` that tells DeepSpeed of Megatron's groups: data parallel within a stage, model = TP x PP."""
    groups = {
        "model_parallel": process_groups.model_group(),
        "tensor_model_parallel": process_groups.tensor_group(),
        "pipeline_model_parallel": process_groups.pipeline_group(),
        "data_parallel": process_groups.data_group(),
    }
    unit = SimpleNamespace()
    for name, group in groups.items():
        setattr(unit, f"get_{name}_group", lambda group=group: group)
        setattr(unit, f"get_{name}_rank", lambda group=group: group.rank())
        setattr(unit, f"get_{name}_world_size", lambda group=group: group.size())
    return unit


def mark_primary(weights: list[tuple[nn.Parameter, LogicalWeight]]) -> None:
    """Tell DeepSpeed's norm which parameters this rank counts.

    DeepSpeed counts a parameter where it is marked model-parallel or on model-parallel rank 0, which at stage 3 is the
    rank in the whole TP x PP group (replicated parameters of later stages are missed) and at stages 1 and 2 the
    tensor-parallel rank (the second copy of a tied embedding is counted, unless it is marked as a pipeline replica).
    """
    for parameter, logical in weights:
        parameter.model_parallel = logical.is_primary
        parameter.tensor_model_parallel = False
        parameter.ds_pipe_replicated = not logical.is_primary


class _Parameters(nn.Module):
    """A module that has the given parameters, each as it is asked for."""

    def __init__(self, parameters: Iterator[nn.Parameter]):
        super().__init__()
        self._made = (parameters,)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:  # noqa: ARG002 - there is no recursion
        return self._made[0]


def partition_as_made(parameters: Iterator[nn.Parameter], settings: dict, mpu: SimpleNamespace) -> None:
    """Partition parameters for ZeRO-3 one by one, so that no rank ever holds a whole stage.

    ``zero.Init`` partitions a module's parameters in a loop over ``module.parameters()``; made on the meta device they
    cannot stand there, so they get their memory in that loop.
    """
    deepspeed.zero.Init(
        module=_Parameters(parameters),
        data_parallel_group=process_groups.data_group(),
        config_dict_or_path=settings,
        mpu=mpu,
    )


def gather_layer_by_layer(chunks: list[GPT]) -> None:
    """Make ZeRO-3 gather the weights of a decoder layer at once, before it runs. Call it before DeepSpeed's engine.

    By default each module inside has its own hooks, none of which a compiled layer can hold.
    """
    for chunk in chunks:
        deepspeed.utils.set_z3_leaf_modules(chunk, [DecoderLayer])


def register_tied_embedding(module: nn.Module, chunks: list[GPT]) -> None:
    """Make ZeRO-3 gather an embedding that the same chunk's head uses: the use is outside the embedding's module."""
    for chunk in chunks:
        if chunk.tied and chunk.is_first and chunk.is_last:
            deepspeed.zero.register_external_parameter(module, chunk.embedding.weight)


def reset_backward_hooks(optimizer) -> None:
    """Reset ZeRO's hook state. It does so in ``forward`` only, but 1F1B runs backward passes in a row (cool-down),
    which stages 2 and 3 then refuse."""
    optimizer.clear_backward_seen_flag()


def reduce_norm_once(optimizer) -> None:
    """Make stage 3 sum the norm over the tensor x pipeline group once, with NaN where it is not finite.

    It does so once for each of its sub-groups, of which pipeline stages may hold different numbers: a hang.
    """
    norms_of_sub_groups, sum_over_model = optimizer._get_norm_groups, optimizer._model_parallel_all_reduce

    def norm_of_the_model() -> list[torch.Tensor]:
        optimizer._model_parallel_all_reduce = lambda **_: None
        norms = torch.stack(norms_of_sub_groups())
        optimizer._model_parallel_all_reduce = sum_over_model
        square = torch.where(norms < 0, torch.nan, norms).square().sum().to(current_device())
        torch.distributed.all_reduce(square, group=process_groups.model_group())
        norm = square.sqrt().to(norms.device)
        return [torch.where(norm.isfinite(), norm, -1.0)]

    optimizer._get_norm_groups = norm_of_the_model


def gradient_norm(optimizer) -> torch.Tensor:
    """Return the norm of the step that is being made or has just been (stages 1-3), NaN where it is not finite:
    DeepSpeed then skips the update at stages 2 and 3, keeping the norm of an earlier step, and reports -1 in bf16."""
    norm = torch.as_tensor(optimizer._global_grad_norm, dtype=torch.float32)
    skipped = getattr(optimizer, "overflow", False)
    return torch.where(norm < 0, torch.nan, norm) if not skipped else torch.full_like(norm, torch.nan)


def forget_gradients(optimizer, stage: int) -> None:
    """Forget the gradients of an update that DeepSpeed has left out.

    Under offload stages 1 and 2 keep those that they have accumulated, and add the next ones to what was not finite.
    """
    if stage in (1, 2) and hasattr(optimizer, "averaged_gradients"):
        for group in optimizer.averaged_gradients:
            optimizer.averaged_gradients[group] = None


def partition(parameter: nn.Parameter, whole: torch.Tensor) -> torch.Tensor:
    """Return this data-parallel rank's part of a weight's value at stage 3, 1-D, padded with zeros as DeepSpeed pads.

    DeepSpeed's own setters of a full value fail where the data-parallel size does not divide the weight, and under
    offload leave the norm as it was before.
    """
    group = process_groups.data_group()
    extent = parameter.ds_tensor.numel()
    padded = torch.nn.functional.pad(whole.flatten(), (0, extent * group.size() - whole.numel()))
    return padded.narrow(0, extent * group.rank(), extent)


def set_full_gradient(optimizer, stage: int, parameter: nn.Parameter, whole: torch.Tensor) -> None:
    """Replace a gradient between DeepSpeed's reduction and its norm (stages 1-3)."""
    if stage == 3:
        safe_set_local_grad(parameter, partition(parameter, whole))
        return
    if isinstance(optimizer, BF16_Optimizer):
        # Every data-parallel rank holds the whole gradient; the public setter would write its bf16 source instead.
        parameter._hp_grad.copy_(whole.flatten())
        return
    safe_set_full_grad(parameter, whole)
    if getattr(optimizer, "cpu_offload", False) and parameter._hp_mapping is not None:
        # Under offload the norm of a gradient is taken when it is reduced.
        part = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group)
        optimizer.norm_for_param_grads[optimizer.get_param_id(parameter)] = torch.linalg.vector_norm(part)


def master_weights(optimizer, stage: int) -> list[torch.Tensor]:
    """Return the flat float32 partitions that ZeRO stages 1-3 update."""
    if stage == 3:
        return optimizer.fp32_partitioned_groups_flat
    if isinstance(optimizer, BF16_Optimizer):  # stage 1 in bf16 with float32 gradients
        return optimizer.fp32_groups_flat_partition
    return optimizer.single_partition_of_fp32_groups


def link_optimizer_state(optimizer, stage: int) -> None:
    """Make the optimizer's states visible to DeepSpeed's full-state accessors.

    Stages 1 and 2 link them once, in their first step, but after the first parameter group's update, when the other
    groups have no states yet; states created outside ``step`` they do not see at all.
    """
    if stage in (1, 2):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def publish_weights(optimizer, stage: int) -> None:
    """Copy the float32 partitions into the parameters of the forward pass."""
    if stage == 3:
        for sub_group in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
        # Small parameters stay gathered between steps; refresh them from their partitions.
        persistent = optimizer.persistent_parameters
        if persistent:
            optimizer._partition_all_parameters()
            persistent[0].all_gather(persistent)
    else:
        optimizer.update_lp_params()
