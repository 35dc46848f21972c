"""Warnings of the libraries that say nothing to a user of this project, silenced by name so that others are seen."""

import logging
import os
import warnings


def silence() -> None:
    """Silence them. Call it before Megatron-core or DeepSpeed is imported: most are given at import, on every rank."""
    import torch

    for message in (
        # megatron-core 0.16.1: its optional kernels and optimizers, of which this project uses none.
        r"(Transformer Engine and )?Apex (is|are) not installed",
        r"full scope is deprecated",
        # torch 2.13: an output that is a view must not be changed in place. Nothing changes token losses in place, and
        # the layout parity compares the gradients.
        r"FSDP2-wrapped module \(FSDPGPT\) returned a view tensor",
    ):
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    # deepspeed 0.19.8 calls collectives by names that torch 2.13 deprecates, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    # torch 2.13: that nothing must be changed in place where recomputation is selective. The parity of compiled layers
    # shows that nothing is.
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(
        lambda record: "Detected that context_fn is passed" not in str(record.msg)
    )
    if not torch.cuda.is_available():
        # megatron-core 0.16.1, with tensor parallelism: about kernels of a GPU. On one it is good advice, which the
        # launch scripts follow.
        warnings.filterwarnings("ignore", message=r"When using async grad allreduce", category=UserWarning)
        # DeepSpeed warns that it found no accelerator unless it is told so.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
