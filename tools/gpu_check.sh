#!/usr/bin/env bash
# What only a GPU can show, from the repository's directory. Each stage is a process of its own: what fails or is cut short
# is remembered in the exit code, keeps what it has measured, and the others run. About an hour on one H200, each stage less
# than 10 minutes by estimate.
# Usage: tools/gpu_check.sh [STAGE ...]     (default: all, in this order)
#   RESULTS=DIRECTORY      where results go (default: benchmarks)
#   STAGE_SECONDS=N        ends a stage after so long (default: never)
#   PYTHON=INTERPRETER     (default: .venv's, where there is one)
#   parity      20 steps of the quickstart model, GPU against CPU (needs data/quickstart/tokens: make quickstart)
#   mfu-124m, mfu-1b       as users get it (compiled, fused loss), AR and CARD, DeepSpeed and FSDP2, with profiles
#   compiled    compiled layers at L 1024 and one micro-batch of 16,384 tokens, 124M and 1B, block diffusion among them
#   accumulated 1B, CARD and AR at 131,072 tokens a step
#   zero        124M, CARD: ZeRO-1 and ZeRO-3, with one micro-batch and with four
#   124m-short  L 512, 1024, 2048; every arm, blocks 4, 16 and 128 under FlexAttention
#   124m-long   L 4096, 8192
#   1b-short    L 512, 1024, 2048; block 16
#   1b-long     L 4096, 8192
#   engine      124M under FSDP2 at L 1024
#   recompute   1B at L 1024: layers that keep all, that recompute selectively, that recompute all; speed and memory
#   largest     124M at L 1024 with each arm's largest micro-batch that the memory holds
#   3b          8 minutes of the 3B preset (2.7B at this vocabulary) on 2.5 million tokens of data/quickstart/tokens, repeated
#   model-deepspeed, model-fsdp2  most layers of the 3B preset's widths that train on this GPU, beside the estimate
#   decode-train    124M trained by AR and on short runs of masks, 500 steps each on data/quickstart/tokens (4 minutes)
#   decode, decode-batches, decode-reference  of what it trained: self-verified and CARD's decoding against cached AR, compiled
#               at batch 1, uncompiled at 8 and 64; AR against transformers'
#   claim       draws docs/latency.svg of what the stages above have measured; alone it needs no GPU
#   half-hour   (not by default) the study launchers/studies/gpu-half-hour.yaml, whose head makes its data; cut short, it goes on
#   official    (not by default) our block diffusion beside the authors' code, 124M, 16 x 1024 tokens, blocks 4 and 16; wants
#               OFFICIAL=a clone of github.com/kuleshov-group/bd3lms, and what that imports: einops, omegaconf
set -euo pipefail
all=(parity mfu-124m mfu-1b compiled accumulated zero 124m-short 124m-long 1b-short 1b-long engine recompute largest 3b
  model-deepspeed model-fsdp2 decode-train decode decode-batches decode-reference claim)
seconds=${STAGE_SECONDS:-}
if [[ $# -ne 1 || -n $seconds ]]; then
  [[ $# -gt 0 ]] || set -- "${all[@]}"
  for stage; do
    [[ " ${all[*]} half-hour official " == *" $stage "* ]] || { echo "error: unknown stage $stage; see the head of $0" >&2; exit 2; }
  done
  status=0
  trap 'kill "$running"; exit 130' INT TERM
  for stage; do
    echo "== $stage =="
    # In the background, so that a signal is heard at once; timeout passes it on to all that the stage has started.
    STAGE_SECONDS="" timeout --kill-after=30 "${seconds:-0}" "$0" "$stage" &
    running=$!
    wait "$running" || status=$?
  done
  exit $status
fi
stage=$1
python=${PYTHON:-.venv/bin/python}
[[ -n ${PYTHON:-} || -x $python ]] || python=python3
# Also where the package is not installed.
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
results=${RESULTS:-benchmarks}
mkdir -p "$results"
[[ $stage == claim ]] || "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available() and "error: torch sees no GPU")'

small=launchers/configs/card-124m.yaml
large=launchers/configs/card-1b.yaml
zero1=(parallel.deepspeed=null parallel.zero=1)
fsdp2=(parallel.engine=fsdp2 parallel.deepspeed=null)
trained=runs/gpu_check
checkpoint=checkpoints/iter_0000500
arms=(ar card mdlm bd3lm-split-b16 bd3lm-dense-b16)
# With FlexAttention under every arm too: what is left of the ratio when all use one kernel.
same_kernel=(card-flex mdlm-flex)

status=0
bench() { # what fails (6: the parts do not add up) is remembered, and the rest measured all the same
  "$python" tools/bench_step_latency.py "$@" || status=$?
}

needs_quickstart() {
  [[ -d data/quickstart/tokens ]] || { echo "error: data/quickstart/tokens is missing; run make quickstart first" >&2; exit 4; }
}

parity() {
  local one_rank
  needs_quickstart
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  one_rank=(launchers/configs/quickstart.yaml parallel.pipeline=1 train.steps=20 train.log_every=1 data.validation_samples=32)
  "$python" -m card_scale.train "${one_rank[@]}" run.dir="$scratch/gpu" | tail -n 1
  CUDA_VISIBLE_DEVICES="" "$python" -m card_scale.train "${one_rank[@]}" run.dir="$scratch/cpu" | tail -n 1
  "$python" - "$scratch" <<'PY' | tee "$results/gpu_parity.txt"
import json, sys
read = lambda name: [r for r in map(json.loads, open(f"{sys.argv[1]}/{name}/metrics.jsonl")) if "loss" in r]
pairs = list(zip(read("gpu"), read("cpu"), strict=True))
worst = max(abs(g[k] - c[k]) / abs(c[k]) for g, c in pairs for k in ("loss", "grad_norm"))
print(f"largest relative difference of loss or gradient norm in {len(pairs)} steps: {worst:.2e}")
sys.exit(not worst <= 1e-3)
PY
}

mfu() { # NAME CONFIG TOKENS
  local common=(--arms ar card --lengths 1024 --tokens "$3" --steps 20 --memory-gib 0 --profile)
  bench "$2" "${common[@]}" --json "$results/gpu_mfu_$1_deepspeed.json"
  bench "$2" "${fsdp2[@]}" "${common[@]}" --json "$results/gpu_mfu_$1_fsdp2.json"
}

zero() {
  local zero micro_batches
  for micro_batches in 1 4; do
    for zero in 1 3; do
      bench "$small" parallel.deepspeed=null parallel.zero="$zero" train.micro_batch=16 train.global_batch=$((16 * micro_batches)) \
        --lengths 1024 --memory-gib 0 --arms card --steps 20 --json "$results/gpu_zero${zero}_micro_batches_$micro_batches.json"
    done
  done
}

decode_train() {
  local common
  needs_quickstart
  common=("$small" data.path=data/quickstart/tokens data.validation_samples=64 train.steps=500 train.global_batch=64
    train.micro_batch=32 train.eval_every=0 train.save_every=0 optimizer.lr=1.5e-3 optimizer.warmup_steps=50)
  "$python" -m card_scale.train "${common[@]}" run.dir="$trained/ar" objective.name=ar | tail -n 1
  "$python" -m card_scale.train "${common[@]}" run.dir="$trained/spans" objective.masking=spans objective.reweight=false | tail -n 1
}

decode() { # NAME OPTION...
  [[ -d $trained/spans/$checkpoint && -d $trained/ar/$checkpoint ]] || { echo "error: run the stage decode-train first" >&2; exit 4; }
  "$python" tools/decode_sweep.py "$trained/spans/$checkpoint" --judge "$trained/ar/$checkpoint" --data data/quickstart/tokens \
    --prompt-tokens 512 --tokens 128 --repetitions 2 --output "$results/gpu_decode_$1.json" "${@:2}" | tee "$results/gpu_decode_$1.txt"
}

three_billion() {
  needs_quickstart
  scratch=$(mktemp -d)
  trap 'for name in metrics.jsonl environment.json; do cp "$scratch/run/$name" "$results/gpu_3b_$name"; done; rm -rf "$scratch"' EXIT
  # Killed, since its checkpoint of 45 GiB says nothing here; a constant learning rate, since nobody knows how far it comes.
  timeout --foreground --signal=KILL 480 "$python" -m card_scale.train launchers/configs/card-3b.yaml "${fsdp2[@]}" parallel.recompute=selective \
    run.dir="$scratch/run" data.path=data/quickstart/tokens data.unique_tokens=2500000 data.validation_samples=32 train.global_batch=32 \
    train.steps=100000 train.eval_every=50 train.save_every=0 optimizer.schedule=constant optimizer.warmup_steps=20 || [[ $? == 137 ]]
}

claim() {
  local found=("$results"/gpu_latency_*.json)
  [[ -e ${found[0]} ]] || { echo "error: no $results/gpu_latency_*.json; run the stages that measure them first" >&2; exit 4; }
  "$python" tools/latency_claim.py "$small" "$large" launchers/configs/card-3b.yaml --results "${found[@]}" --plot docs/latency.svg
}

largest_model() { # ENGINE OVERRIDE...
  "$python" tools/largest_model.py launchers/configs/card-3b.yaml "${@:2}" train.micro_batch=1 parallel.recompute=full \
    --json "$results/gpu_largest_model_$1.json"
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
  bench "$config" train.compile=false --steps 20 --tokens "$tokens" --memory-gib 0 --lengths "$@" --arms "${arms[@]}" "${flex[@]}" "${same_kernel[@]}" \
    --json "$results/gpu_latency_$name.json" --plot "$results/gpu_latency_$name.png"
}

case $stage in
  parity) parity ;;
  mfu-124m) mfu 124m "$small" 65536 ;;
  mfu-1b) mfu 1b "$large" 32768 ;;
  compiled)
    bench "$small" "$large" --tokens 16384 --memory-gib 0 --lengths 1024 --arms ar card mdlm bd3lm-flex-b16 --steps 30 \
      --json "$results/gpu_latency_compiled.json"
    ;;
  accumulated)
    bench "$large" train.micro_batch=32 train.global_batch=128 --memory-gib 0 --lengths 1024 --arms ar card --steps 10 \
      --json "$results/gpu_accumulated.json"
    ;;
  zero) zero ;;
  124m-short) sweep 124m-short "$small" 16384 4 16 128 -- 512 1024 2048 ;;
  124m-long) sweep 124m-long "$small" 16384 4 16 128 -- 4096 8192 ;;
  1b-short) sweep 1b-short "$large" 8192 16 -- 512 1024 2048 ;;
  1b-long) sweep 1b-long "$large" 8192 16 -- 4096 8192 ;;
  engine)
    bench "$small" "${fsdp2[@]}" --tokens 16384 --memory-gib 0 --lengths 1024 --arms ar card mdlm bd3lm-flex-b16 \
      --json "$results/gpu_latency_fsdp2.json"
    ;;
  recompute)
    for recompute in none selective full; do
      bench "$large" parallel.recompute="$recompute" --tokens 32768 --memory-gib 0 --lengths 1024 --arms card --steps 20 \
        --json "$results/gpu_recompute_$recompute.json"
    done
    ;;
  largest)
    bench "$small" --tokens 16384 --lengths 1024 --arms card bd3lm-flex-b16 bd3lm-dense-b16 --steps 20 \
      --json "$results/gpu_latency_largest.json"
    ;;
  3b) three_billion ;;
  model-deepspeed) largest_model deepspeed "${zero1[@]}" ;;
  model-fsdp2) largest_model fsdp2 "${fsdp2[@]}" ;;
  decode-train) decode_train ;;
  decode)
    decode compiled --batch 1 --prompts 4 --drafts 2 4 8 --candidates 1 2 --leniency 0 0.5 --tau 0.5 0.7 0.9 --compile \
      --figure "$results/gpu_decode.png"
    ;;
  decode-batches)
    decode batch_8 --batch 8 --prompts 16 --methods self_verified --drafts 2 4 8 --candidates 1 2
    decode batch_64 --batch 64 --prompts 64 --methods self_verified --drafts 2 4 8 --candidates 1 2
    ;;
  decode-reference)
    decode reference --batch 1 --prompts 4 --methods self_verified --drafts 4 --transformers
    decode no_copies --batch 1 --prompts 4 --methods self_verified --copies 0 --drafts 2 4 8 --candidates 1 2 4
    ;;
  claim) claim ;;
  half-hour) "$python" tools/study.py run launchers/studies/gpu-half-hour.yaml ;;
  official)
    for block in 4 16; do
      "$python" tools/bench_official_bd3lm.py "${OFFICIAL:?a clone of github.com/kuleshov-group/bd3lms}" "$small" \
        objective.block="$block" --tokens 16384 --json "$results/gpu_official_b$block.json" || status=$?
    done
    ;;
  *) echo "error: unknown stage $stage; see the head of $0" >&2; exit 2 ;;
esac
exit $status
