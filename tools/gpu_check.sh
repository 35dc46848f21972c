#!/usr/bin/env bash
# What only a GPU can show, from the repository's directory: the same run on GPU and CPU, the step-latency benchmark and
# the model FLOPs utilisation at 124M and 1B. Results: benchmarks/gpu_*. About 50 minutes on one H200, each stage less
# than 10; a stage's file is written anew after each of its lengths, so one that is cut short leaves what it has.
# Usage: tools/gpu_check.sh [STAGE ...]     (default: all, in this order; PYTHON=... another interpreter than .venv's)
#   parity      20 steps of the quickstart model, GPU against CPU (needs data/quickstart/tokens: make quickstart)
#   mfu         as users get it (compiled, fused loss), 65,536 tokens a micro-batch: AR and CARD at 124M and 1B, both engines, with profiles
#   124m-short  L 512, 1024, 2048; every arm, blocks 4, 16 and 128 under FlexAttention
#   124m-long   L 4096, 8192
#   1b-short    L 512, 1024, 2048; block 16
#   1b-long     L 4096, 8192
#   compiled    compiled layers at L 1024, 124M and 1B, block diffusion among them
#   engine      124M under FSDP2 at L 1024
#   recompute   1B at L 1024: layers that keep all, that recompute selectively, that recompute all; speed and memory
#   largest     124M at L 1024 with each arm's largest micro-batch that the memory holds
#   decode      124M trained on short runs of masks and by AR, 500 steps each on data/quickstart/tokens; then its decoding,
#               self-verified and CARD's, against cached AR at batch 1 to 64, and AR against transformers'
#   3b          8 minutes of the 3B preset (2.7B at this vocabulary) on 2.5 million tokens of data/quickstart/tokens, repeated
#   model-deepspeed, model-fsdp2  most layers of the 3B preset's widths that train on this GPU, beside the estimate
#   claim       draws docs/latency.svg of what the stages above have measured; alone it needs no GPU
#   half-hour   (not by default) the study launchers/studies/gpu-half-hour.yaml, whose head makes its data; cut short, it goes on
#   official    (not by default) our block diffusion beside the authors' code, 124M, 16 x 1024 tokens, blocks 4 and 16; wants
#               OFFICIAL=a clone of github.com/kuleshov-group/bd3lms, and what that imports: einops, omegaconf
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
stages=(parity mfu 124m-short 124m-long 1b-short 1b-long compiled engine recompute largest decode 3b model-deepspeed model-fsdp2 claim)
[[ $# -eq 0 ]] || stages=("$@")
[[ ${stages[*]} == claim ]] || "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available() and "error: torch sees no GPU")'

small=launchers/configs/card-124m.yaml
large=launchers/configs/card-1b.yaml
fsdp2=(parallel.engine=fsdp2 parallel.deepspeed=null)
arms=(ar card mdlm bd3lm-split-b16 bd3lm-dense-b16)
# With FlexAttention under every arm too: what is left of the ratio when all use one kernel.
same_kernel=(card-flex mdlm-flex)

status=0
bench() { # what fails (6: the parts do not add up) is remembered, and the rest measured all the same
  "$python" tools/bench_step_latency.py "$@" || status=$?
}

parity() {
  local scratch one_rank
  [[ -d data/quickstart/tokens ]] || { echo "error: data/quickstart/tokens is missing; run make quickstart first" >&2; exit 4; }
  scratch=$(mktemp -d)
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
  rm -rf "$scratch"
}

mfu() {
  local common=(--arms ar card --lengths 1024 --tokens 65536 --steps 20 --memory-gib 0 --profile)
  bench "$small" "$large" "${common[@]}" --json benchmarks/gpu_mfu_deepspeed.json
  bench "$small" "$large" "${fsdp2[@]}" "${common[@]}" --json benchmarks/gpu_mfu_fsdp2.json
}

decode() {
  local scratch common checkpoint=checkpoints/iter_0000500
  [[ -d data/quickstart/tokens ]] || { echo "error: data/quickstart/tokens is missing; run make quickstart first" >&2; exit 4; }
  scratch=$(mktemp -d)
  common=("$small" data.path=data/quickstart/tokens data.validation_samples=64 train.steps=500 train.global_batch=64
    train.micro_batch=32 train.eval_every=0 train.save_every=0 optimizer.lr=1.5e-3 optimizer.warmup_steps=50)
  "$python" -m card_scale.train "${common[@]}" run.dir="$scratch/ar" objective.name=ar | tail -n 1
  "$python" -m card_scale.train "${common[@]}" run.dir="$scratch/spans" objective.masking=spans objective.reweight=false | tail -n 1
  "$python" tools/decode_sweep.py "$scratch/spans/$checkpoint" --judge "$scratch/ar/$checkpoint" --data data/quickstart/tokens \
    --drafts 2 4 8 --candidates 1 2 --leniency 0 0.5 --tau 0.5 0.7 0.9 --batch 1 8 64 --prompts 64 --prompt-tokens 512 --tokens 128 --transformers --compile \
    --output benchmarks/gpu_decode.json --figure benchmarks/gpu_decode.png
  "$python" tools/decode_sweep.py "$scratch/spans/$checkpoint" --data data/quickstart/tokens --methods self_verified --copies 0 \
    --drafts 2 4 8 --candidates 1 2 4 --prompts 64 --prompt-tokens 512 --tokens 128 --compile --output benchmarks/gpu_decode_no_copies.json
  rm -rf "$scratch"
}

three_billion() {
  local scratch
  [[ -d data/quickstart/tokens ]] || { echo "error: data/quickstart/tokens is missing; run make quickstart first" >&2; exit 4; }
  scratch=$(mktemp -d)
  # Killed, since its checkpoint of 45 GiB says nothing here; a constant learning rate, since nobody knows how far it comes.
  timeout --signal=KILL 480 "$python" -m card_scale.train launchers/configs/card-3b.yaml "${fsdp2[@]}" parallel.recompute=selective \
    run.dir="$scratch/run" data.path=data/quickstart/tokens data.unique_tokens=2500000 data.validation_samples=32 train.global_batch=32 \
    train.steps=100000 train.eval_every=50 train.save_every=0 optimizer.schedule=constant optimizer.warmup_steps=20 || [[ $? == 137 ]] || status=$?
  cp "$scratch/run/metrics.jsonl" benchmarks/gpu_3b_metrics.jsonl
  cp "$scratch/run/environment.json" benchmarks/gpu_3b_environment.json
  rm -rf "$scratch"
}

claim() {
  local found=(benchmarks/gpu_latency_*.json)
  if [[ ! -e ${found[0]} ]]; then
    echo "error: no benchmarks/gpu_latency_*.json; run the stages that measure them first" >&2
    status=4
    return
  fi
  "$python" tools/latency_claim.py "$small" "$large" launchers/configs/card-3b.yaml --results "${found[@]}" --plot docs/latency.svg || status=$?
}

largest_model() { # ENGINE OVERRIDE...
  "$python" tools/largest_model.py launchers/configs/card-3b.yaml "${@:2}" train.micro_batch=1 parallel.recompute=full \
    --json "benchmarks/gpu_largest_model_$1.json" || status=$?
}

sweep() { # NAME CONFIG TOKENS FLEX_BLOCKS... -- LENGTH...
  local name=$1 config=$2 tokens=$3 flex=()
  shift 3
  while [[ $1 != -- ]]; do
    flex+=("bd3lm-flex-b$1")
    shift
  done
  shift
  # Not compiled, so that the kernels of attention can be told from the layers; `compiled` measures what users get.
  bench "$config" train.compile=false --tokens "$tokens" --memory-gib 0 --lengths "$@" --arms "${arms[@]}" "${flex[@]}" "${same_kernel[@]}" \
    --json "benchmarks/gpu_latency_$name.json" --plot "benchmarks/gpu_latency_$name.png"
}

for stage in "${stages[@]}"; do
  echo "== $stage =="
  case $stage in
    parity) parity ;;
    mfu) mfu ;;
    124m-short) sweep 124m-short "$small" 16384 4 16 128 -- 512 1024 2048 ;;
    124m-long) sweep 124m-long "$small" 16384 4 16 128 -- 4096 8192 ;;
    1b-short) sweep 1b-short "$large" 8192 16 -- 512 1024 2048 ;;
    1b-long) sweep 1b-long "$large" 8192 16 -- 4096 8192 ;;
    compiled)
      bench "$small" "$large" --tokens 16384 --memory-gib 0 --lengths 1024 --arms ar card mdlm bd3lm-flex-b16 \
        --json benchmarks/gpu_latency_compiled.json
      ;;
    engine)
      bench "$small" "${fsdp2[@]}" --tokens 16384 --memory-gib 0 --lengths 1024 --arms ar card mdlm bd3lm-flex-b16 \
        --json benchmarks/gpu_latency_fsdp2.json
      ;;
    recompute)
      for recompute in none selective full; do
        bench "$large" parallel.recompute="$recompute" --tokens 32768 --memory-gib 0 --lengths 1024 --arms card --steps 20 \
          --json "benchmarks/gpu_recompute_$recompute.json"
      done
      ;;
    official)
      for block in 4 16; do
        "$python" tools/bench_official_bd3lm.py "${OFFICIAL:?a clone of github.com/kuleshov-group/bd3lms}" "$small" \
          objective.block="$block" --tokens 16384 --json "benchmarks/gpu_official_b$block.json" || status=$?
      done
      ;;
    largest)
      bench "$small" --tokens 16384 --lengths 1024 --arms card bd3lm-flex-b16 bd3lm-dense-b16 \
        --json benchmarks/gpu_latency_largest.json
      ;;
    decode) decode ;;
    3b) three_billion ;;
    model-deepspeed) largest_model deepspeed parallel.deepspeed=null parallel.zero=1 ;;
    model-fsdp2) largest_model fsdp2 "${fsdp2[@]}" ;;
    half-hour) "$python" tools/study.py run launchers/studies/gpu-half-hour.yaml ;;
    claim) claim ;;
    *) echo "error: unknown stage $stage; see the head of $0" >&2; exit 2 ;;
  esac
done
exit $status
