#!/usr/bin/env bash
# A Slurm cluster of two nodes on this machine, for the launcher tests: one controller, two node daemons that share the
# host, and a munge daemon of their own. Everything lies in DIR; a Slurm that the machine belongs to is left alone.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: slurm_cluster.sh start DIR CONTROLLER_PORT NODE1_PORT NODE2_PORT
       slurm_cluster.sh stop DIR

start returns when both nodes are idle (1 if they are not in time); commands find the cluster by SLURM_CONF=DIR/slurm.conf.
Needs slurmctld, slurmd, munged and the Slurm commands (Debian: apt-get install --no-install-recommends slurm-wlm munge).
TEXT
}

write_configuration() {
  local user
  user=$(id -un)
  # Processes are tracked by their parents: a container has no control groups to give.
  cat >"$directory/slurm.conf" <<CONF
ClusterName=launchertest
SlurmctldHost=$HOSTNAME(127.0.0.1)
SlurmctldPort=$1
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$directory/munge.socket
CredType=cred/munge
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool-%n
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd-%n.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000
MpiDefault=none
ReturnToService=2
KillWait=5
NodeName=node1 NodeHostname=$HOSTNAME NodeAddr=127.0.0.1 Port=$2 CPUs=2 RealMemory=1000
NodeName=node2 NodeHostname=$HOSTNAME NodeAddr=127.0.0.1 Port=$3 CPUs=2 RealMemory=1000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
CONF
}

start() {
  mkdir -p "$directory/state"
  write_configuration "$@"
  (
    umask 077
    head -c 1024 /dev/urandom >"$directory/munge.key"
  )
  # --force: munged warns of directories that others may write to; this one lies under the tests' scratch directory.
  munged --force --key-file "$directory/munge.key" --socket "$directory/munge.socket" \
    --pid-file "$directory/munged.pid" --log-file "$directory/munged.log" --seed-file "$directory/munged.seed"
  slurmctld
  slurmd -N node1
  slurmd -N node2
  for _ in $(seq 150); do
    [[ $(sinfo --noheader --states=idle --format=%D) != 2 ]] || return 0
    sleep 0.2
  done
  echo "the two nodes did not become idle:" >&2
  tail -n 20 "$directory"/*.log >&2
  return 1
}

stop() {
  scancel --signal=KILL --full --state=RUNNING --user="$(id -un)" 2>/dev/null || true
  local file
  for file in "$directory"/{slurmd-node1,slurmd-node2,slurmctld,munged}.pid; do
    [[ ! -s $file ]] || kill "$(<"$file")" 2>/dev/null || true
  done
}

action=${1:-} directory=${2:-}
[[ -n $directory ]] || {
  usage >&2
  exit 2
}
export SLURM_CONF=$directory/slurm.conf
PATH=$PATH:/usr/sbin:/sbin # where the daemons lie, and not on every user's path
shift 2
case $action:$# in
  start:3) start "$@" ;;
  stop:0) stop ;;
  *)
    usage >&2
    exit 2
    ;;
esac
