#!/usr/bin/env bash
# One machine: a training process for each GPU, or $NPROC of them.
set -euo pipefail
# shellcheck source=launchers/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: launchers/torchrun_one_node.sh [--nproc N] [--dry-run] CONFIG.yaml [key=value ...]

Trains on this machine and exits with the run's exit code (docs/launching.md). Start it in the repository's directory.

  --nproc N   training processes (default: $NPROC, else one for each GPU)
  --dry-run   print the command line instead of running it

Ctrl-C, SIGTERM or SIGUSR1: finish the step, save, exit with 75; Ctrl-C again: kill.
TEXT
}

while [[ $# -gt 0 ]]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=yes && shift ;;
    --nproc)
      [[ $# -ge 2 ]] || usage_error "$1 needs a value"
      NPROC=$2
      shift 2
      ;;
    -*) usage_error "unknown option $1 (options of the training program come after CONFIG)" ;;
    *) break ;;
  esac
done
[[ $# -ge 1 ]] || usage_error "CONFIG is missing"
launch --standalone -- "$@"
