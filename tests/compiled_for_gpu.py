"""Compiles every Triton kernel for a GPU that need not be there, by the calls that launch them; prints what each takes.

The interpreter runs what the compiler refuses, and says nothing of registers. To be started without TRITON_INTERPRET.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from card_scale.model.cross_entropy.fused import vocabulary_parallel_cross_entropy
from card_scale.objectives import card, noise
from card_scale.objectives.block_diffusion import BlockDiffusionObjective
from card_scale.objectives.mdlm import MdlmObjective
from tests.objectives.samples import samples_of

RESOURCES = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Absent:
    """A driver, and its utilities, of a GPU that can be compiled for; launching on it does nothing."""

    def __init__(self, architecture: int):
        self.target = GPUTarget("cuda", architecture, 32)
        self.utils = self
        self.taken: dict[str, str] = {}
        """Kernel's name → what its code takes, in the words of ``cuobjdump``."""

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": 99 * 1024}

    def launcher_cls(self, _source, _metadata):
        return lambda *_: None

    def load_binary(self, name: str, code: bytes, _shared: int, _device: int):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code)
            file.flush()
            command = [RESOURCES, "--dump-resource-usage", file.name]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        self.taken[f"{name} {len(self.taken)}"] = next(line for line in said.splitlines() if "REG:" in line)
        return None, None, 0, 0, 1024

    def unload_module(self, _module) -> None:
        pass


def launch_all() -> None:
    """Launch each kernel as its users do, in every form that they have."""
    noise.is_fused = lambda _: True
    samples = samples_of(torch.ones(2, card.LONGEST_FUSED + 1, dtype=torch.int64))
    noise.uniforms(7, samples.sample_ids, samples.epochs, card.LONGEST_FUSED, noise.Stream.MASK)
    for masking in card.MASKINGS:
        card.CardObjective(masking=masking).corrupt(samples, 7)
    few = samples_of(torch.ones(2, 65, dtype=torch.int64))
    card.CardObjective(masking="spans", reweight=False, masked_weight=3).corrupt(few, 7)
    BlockDiffusionObjective().corrupt(samples, 7)
    MdlmObjective().corrupt(few, 7)
    targets, forbidden = torch.ones(3, dtype=torch.int64), torch.zeros(8192, dtype=torch.bool)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.zeros(3, 8192, dtype=dtype, requires_grad=True)
        losses = vocabulary_parallel_cross_entropy(logits * 1, targets, 0, forbidden, dist.group.WORLD)
        losses.sum().backward()


def main() -> None:
    assert "TRITON_INTERPRET" not in os.environ
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
        absent = Absent(architecture=int(sys.argv[1]))
        driver.set_active(absent)
        launch_all()
        dist.destroy_process_group()
    print(json.dumps(absent.taken))


if __name__ == "__main__":
    main()
