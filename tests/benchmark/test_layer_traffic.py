"""What a compiled layer moves, by the compiler's count, so that no change makes it read and write more unnoticed."""

import re
import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools/layer_traffic.py"
SIZES = ["hidden=96", "heads=4", "ffn=256", "length=64"]


def test_a_layer_reads_and_writes_little_more_than_it_must():
    """Forward 22: norm 2, rotation of queries and keys 4 and angles, sum and norm 3, gate 8, sum 4. Backward 32."""
    overrides = [f"model.{size}" for size in SIZES] + ["parallel.deepspeed=null", "parallel.zero=0"]
    command = [sys.executable, TOOL, "launchers/configs/card-1b.yaml", *overrides]
    done = subprocess.run(command, cwd=TOOL.parents[1], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    element_wise, kernels, others = map(
        float, re.search(r"wise ([\d.]+) in (\d+) kernels; .* ([\d.]+)", done.stdout).groups()
    )
    assert 50 < element_wise < 58
    assert kernels < 35
    # Twelve products read or write hidden states, and what is as wide as the network: 3 + 1, 1 + 1, 1 + 16/3, 8/3 + 1,
    # each forward and twice backward, attention 6 and 8; weights come on top, here and there.
    assert others > 40 + 14
