# shellcheck shell=bash
# Functions of the launch scripts, which source this file. They start card_scale.train and end with its exit code.

launchers=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
dry_run=no
resend_seconds=2 # a process that has not installed its signal handlers yet does not hear a stop request
record_seconds=0 # a machine's ranks may end before rank 0, on another machine, has written exit.json

# Until the job runs, the scheduler's early warning only leaves a note.
stopped_early=''
trap 'stopped_early=yes' USR1

# The environment that `make quickstart` created serves unless another one is active.
if [[ -z ${VIRTUAL_ENV:-} && -x $launchers/../.venv/bin/torchrun ]]; then
  PATH=$(cd -- "$launchers/../.venv/bin" && pwd):$PATH
fi

# usage_error MESSAGE: says what is wrong and how the script is used, and exits with 2.
usage_error() {
  {
    echo "error: $1"
    usage
  } >&2
  exit 2
}

# require_number NAME VALUE: refuses what is no whole number of at least 1.
require_number() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || usage_error "$1 is '$2'; it must be a whole number, 1 or more"
}

# default NAME VALUE: exports the variable where the environment has none, and remembers it for --dry-run.
defaulted=()
default() {
  [[ -z ${!1+set} ]] || return 0
  export "$1=$2"
  defaulted+=("$1=$2")
}

# set_environment PROCESSES: defaults that training wants, for so many processes on this node.
set_environment() {
  local threads=$(($(nproc) / $1))
  default OMP_NUM_THREADS $((threads > 0 ? threads : 1))
  default CUDA_DEVICE_MAX_CONNECTIONS 1 # kernels start in launch order: communication before what it should overlap
  default PYTORCH_ALLOC_CONF expandable_segments:True # less memory lost to fragmentation
  default TORCH_NCCL_ASYNC_ERROR_HANDLING 3           # a failed or timed-out collective ends the process
  default PYTHONFAULTHANDLER 1                        # a crash prints the Python stack
}

# processes_per_node: prints $NPROC, else the number of GPUs; where there is none, NPROC must be given. To be called in
# a subshell, as run_directory is: SIGUSR1 must not kill the Python that they start.
processes_per_node() {
  trap '' USR1
  local count=${NPROC:-${SLURM_GPUS_ON_NODE:-}}
  if [[ -z $count ]]; then
    count=$(python -c 'import torch; print(torch.cuda.device_count())')
    [[ $count != 0 ]] || usage_error "this machine has no GPU; give the number of processes (--nproc N or NPROC=N)"
  fi
  require_number "the number of processes per node" "$count"
  echo "$count"
}

# print_command COMMAND...: prints it as one line that a shell would run, with the variables that were defaulted.
print_command() {
  local line
  printf -v line ' %q' "${defaulted[@]}" "$@"
  echo "env$line"
}

# run_directory CONFIG [OVERRIDE...]: prints run.dir. A configuration that is refused ends here, with its message and
# code, before any rank starts.
run_directory() {
  trap '' USR1
  local resolved
  resolved=$(python -m card_scale.train "$@" --print-config) || return
  python -c 'import sys, yaml; print(yaml.safe_load(sys.stdin)["run"]["dir"])' <<<"$resolved"
}

# children PID: prints the process ids of its children. (Every Linux has /proc; not every container has pgrep.) To be
# called in a subshell: a signal that Slurm sends to all processes of a step must not make it print nothing.
children() {
  trap '' USR1
  grep -sl "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status | cut -d / -f 3
}

# stop_workers TORCHRUN_PID: asks the training processes to save and end. torchrun is passed over, because it would kill
# them 30 seconds after a signal of its own, unless it has no processes yet and waits for other nodes.
stop_workers() {
  local workers
  workers=$(children "$1") || true
  if [[ -n $workers ]]; then
    # shellcheck disable=SC2086 # one argument a process
    kill -USR1 $workers
  else
    kill -TERM "$1"
  fi 2>/dev/null || true
}

# kill_workers TORCHRUN_PID: ends the training processes at once.
kill_workers() {
  local workers
  workers=$(children "$1") || true
  # shellcheck disable=SC2086 # one argument a process
  kill -KILL $workers 2>/dev/null || true
  kill -TERM "$1" 2>/dev/null || true
}

# request_stop SIGNAL: the trap while a job runs. The first signal asks for a stop, again and again until it is heard;
# a second Ctrl-C does not wait.
request_stop() {
  # All is noted before the message: whoever reads it may press Ctrl-C again at once, and a trap interrupts a trap.
  if [[ -z $asked ]]; then
    asked=yes
    # They hear SIGUSR1, whatever it was; that the note cannot be written must not keep them from being asked.
    [[ -z ${CARD_LAUNCH_NOTES:-} ]] || { echo "SIG$1" >"$CARD_LAUNCH_NOTES/stop"; } 2>/dev/null || true
    [[ -n $(children "$job") ]] || stopped_before_start=yes
    echo "SIG$1: asked the training processes to save and stop" >&2
    (
      trap '' USR1
      while kill -0 "$job" 2>/dev/null; do
        "$ask_to_stop" "$job"
        sleep "$resend_seconds"
      done
    ) >/dev/null 2>&1 &
    asker=$!
  elif [[ $1 == INT ]]; then
    killed=yes
    echo "SIGINT again: killed the training processes; the last checkpoint stays" >&2
    kill_workers "$job"
  fi
}

# record_identity RUN_DIR: prints what tells one exit.json from the next; nothing where there is none.
record_identity() {
  stat --format '%i %y %s' "$1/exit.json" 2>/dev/null || true
}

# record_appears RUN_DIR BEFORE: whether exit.json is another than BEFORE, within record_seconds.
record_appears() {
  local seconds=$record_seconds
  while [[ $(record_identity "$1") == "$2" ]]; do
    ((seconds-- > 0)) || return 1
    sleep 1
  done
}

# recorded_code FILE [NAME]: prints the code, and on stderr, after torchrun's report, the reason, under the file's name.
recorded_code() {
  python -c '
import json, sys
record = json.load(open(sys.argv[1]))
print(sys.argv[-1], record["code"], record["reason"], sep=": ", file=sys.stderr)
print(record["code"])' "$@"
}

# run_job RUN_DIR ASK_TO_STOP COMMAND...: runs the command and returns the run's exit code. When the command fails that
# is the code in exit.json, since torchrun itself returns 1 for any worker's code; an exit.json that an earlier run left
# does not count. On SIGINT, SIGTERM, SIGHUP or SIGUSR1, calls `ASK_TO_STOP PID` with the command's process id.
run_job() {
  local directory=$1 ask_to_stop=$2 job asker='' asked='' killed='' stopped_before_start='' code=0 before recorded
  shift 2
  if [[ -n $stopped_early ]]; then
    echo "SIGUSR1: stopped before the job began" >&2
    return 75
  fi
  before=$(record_identity "$directory")
  # A session of its own, so that Ctrl-C reaches the training processes once, from here. SIGUSR1 is ignored until they
  # install their handler: unheard it would kill them.
  (
    trap '' USR1
    exec setsid "$@"
  ) &
  job=$!
  trap 'request_stop INT' INT
  trap 'request_stop TERM' TERM
  trap 'request_stop HUP' HUP
  trap 'request_stop USR1' USR1
  # A signal ends `wait` early, and bash keeps the status of a job that has ended: ask until it has, then read it.
  while wait "$job" || true; kill -0 "$job" 2>/dev/null; do :; done
  wait "$job" || code=$?
  trap - INT TERM HUP
  trap '' USR1 # other nodes may still be asked
  [[ -z $asker ]] || kill "$asker" 2>/dev/null || true
  if [[ $code == 0 ]]; then
    return 0
  fi
  if [[ -n $killed && -d $directory && $(record_identity "$directory") == "$before" ]]; then
    echo '{"code": 1, "reason": "killed by a second Ctrl-C; the last checkpoint stays"}' >"$directory/exit.json"
  fi
  if [[ -n $stopped_before_start && $(record_identity "$directory") == "$before" ]]; then
    code=75
  elif record_appears "$directory" "$before"; then
    recorded=$(recorded_code "$directory/exit.json") || recorded=$code
    [[ $recorded == 0 ]] || code=$recorded
  elif [[ -f ${CARD_LAUNCH_NOTES:-}/exit.json ]]; then
    # The run directory is another run's, or cannot be written: the ranks have left a note.
    recorded=$(recorded_code "$CARD_LAUNCH_NOTES/exit.json" "exit code") || recorded=$code
    [[ $recorded == 0 ]] || code=$recorded
  fi
  return "$code"
}

# launch LAYOUT_OPTION... -- CONFIG [OVERRIDE...]: runs torchrun on this node with these options, and exits with the
# run's exit code. With dry_run=yes prints the command line instead.
launch() {
  local layout=() processes directory code=0
  while [[ $1 != -- ]]; do
    layout+=("$1")
    shift
  done
  shift
  processes=$(processes_per_node)
  set_environment "$processes"
  local command=(torchrun "${layout[@]}" --nproc-per-node "$processes" -m card_scale.train "$@")
  if [[ $dry_run == yes ]]; then
    print_command "${command[@]}"
    exit 0
  fi
  directory=$(run_directory "$@")
  # What this script and the ranks that it starts tell each other; see card_scale/training/exit_record.py.
  CARD_LAUNCH_NOTES=$(mktemp -d)
  export CARD_LAUNCH_NOTES
  trap 'rm -rf "$CARD_LAUNCH_NOTES"' EXIT
  run_job "$directory" stop_workers "${command[@]}" || code=$?
  exit "$code"
}
