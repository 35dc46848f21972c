#!/usr/bin/env bash
# Several machines: start it on each, with the same arguments; they find each other at HEAD.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launchers/torchrun_multi_node.sh [options] CONFIG.yaml [key=value ...]

Run the same command on every machine, in the repository's directory; it exits with the run's exit code
(docs/launching.md). The data and run directories must be the same files on all of them.

  --nnodes N         machines (default: $NNODES)
  --head HOST:PORT   address of one of the machines, and a port that is free there (default: $HEAD)
  --job-id ID        the same on all machines, another for every job (default: $JOB_ID)
  --nproc N          training processes on this machine (default: $NPROC, else one for each GPU)
  --dry-run          print the command line instead of running it

Ctrl-C, SIGTERM or SIGUSR1 on any of them: finish the step, save, exit with 75; Ctrl-C again: kill.
TEXT
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=yes && shift ;;
    --nnodes | --head | --job-id | --nproc)
      [[ $# -ge 2 ]] || usage_error "$1 needs a value"
      case $1 in
        --nnodes) NNODES=$2 ;;
        --head) HEAD=$2 ;;
        --job-id) JOB_ID=$2 ;;
        --nproc) NPROC=$2 ;;
      esac
      shift 2
      ;;
    -*) usage_error "unknown option $1 (options of the training program come after CONFIG)" ;;
    *) break ;;
  esac
done
[[ $# -ge 1 ]] || usage_error "CONFIG is missing"
require_number "the number of machines (--nnodes or NNODES)" "${NNODES:-}"
[[ ${HEAD:-} =~ ^.+:[0-9]+$ ]] || usage_error "the meeting point (--head or HEAD) is '${HEAD:-}'; it must be HOST:PORT"
[[ -n ${JOB_ID:-} ]] || usage_error "the job's id (--job-id or JOB_ID) is missing"
# shellcheck disable=SC2034 # run_job reads it
record_seconds=10
launch --nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$JOB_ID" -- "$@"
