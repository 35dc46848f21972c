#!/usr/bin/env bash
# What only a GPU can show, with one command from the repository's directory: the same run on GPU and CPU, CARD's cost
# over AR and the model FLOPs utilisation at 124M and 1B. Results: benchmarks/gpu_*.json.
# Usage: tools/gpu_check.sh [PYTHON]        (PYTHON: interpreter of the environment, default .venv/bin/python)
set -euo pipefail
python=${1:-.venv/bin/python}
[[ -d data/quickstart/tokens ]] || { echo "error: data/quickstart/tokens is missing; run make quickstart first" >&2; exit 4; }
"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available() and "error: torch sees no GPU")'
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "== parity: 20 steps of the quickstart model, GPU against CPU =="
one_rank=(launchers/configs/quickstart.yaml parallel.pipeline=1 train.steps=20 train.log_every=1 data.validation_samples=32)
"$python" -m card_scale.train "${one_rank[@]}" run.dir="$scratch/gpu" | tail -n 1
CUDA_VISIBLE_DEVICES="" "$python" -m card_scale.train "${one_rank[@]}" run.dir="$scratch/cpu" | tail -n 1
"$python" - "$scratch" <<'PY'
import json, sys
read = lambda name: [r for r in map(json.loads, open(f"{sys.argv[1]}/{name}/metrics.jsonl")) if "loss" in r]
worst = max(abs(g[k] - c[k]) / abs(c[k]) for g, c in zip(read("gpu"), read("cpu")) for k in ("loss", "grad_norm"))
print(f"largest relative difference of loss or gradient norm in 20 steps: {worst:.2e}")
sys.exit(worst > 1e-3)
PY

echo "== CARD over AR, and utilisation =="
for size in 124m 1b; do
  for engine in deepspeed fsdp2; do
    overrides=(parallel.engine="$engine" train.global_batch=64 train.micro_batch=64)
    [[ $engine == deepspeed ]] || overrides+=(parallel.deepspeed=null)
    "$python" tools/bench_objective_cost.py "launchers/configs/card-$size.yaml" "${overrides[@]}" \
      --json "benchmarks/gpu_objective_cost_${size}_$engine.json"
  done
done
