#!/usr/bin/env bash
# Runs a command beside a Slurm cluster of its own: every daemon on this machine, everything it
# writes in a temporary folder, nothing left at the end. Needs neither root nor systemd.
#
# Usage: scripts/slurm_here.sh [--nodes N] COMMAND...     for example: ... srun -n 4 hostname
#
# N nodes (1 unless told) named here1, here2, ... share this machine; each takes 8 tasks. Exits as the
# command does, with 77 and a reason if Slurm is not installed, with 1 and the logs if it does not
# start.
set -euo pipefail

nodes=1
if [ "${1:-}" = "--nodes" ]; then
  nodes="$2"
  shift 2
fi
[ $# -gt 0 ] || { sed -n '2,/^set/{/^set/d;s/^# \?//;p}' "$0" >&2; exit 2; }

PATH="$PATH:/usr/sbin:/sbin"
for program in srun slurmctld slurmd munged python3; do
  if ! command -v "$program" >/dev/null; then
    echo "skipped: $program is not installed (apt-get install slurm-wlm munge)" >&2
    exit 77
  fi
done

# The environment of a cluster around this one means nothing here.
unset "${!SLURM_@}"

folder="$(mktemp -d "${TMPDIR:-/tmp}/slurm-here-XXXXXX")"
chmod 755 "$folder"
daemons=()
command_process=

# Ends jobs in order, which takes seconds at most, then whatever is left: daemons, step managers and
# tasks, each with this cluster's configuration in its environment, by process id.
tear_down() {
  local status=$? process
  trap - EXIT INT TERM
  {
    [ -n "$command_process" ] && kill "$command_process"
    timeout 5 scancel --user="$(id -un)"
    for _ in $(seq 50); do
      [ -z "$(timeout 5 squeue --noheader)" ] && break
      sleep 0.1
    done
    for process in /proc/[0-9]*; do
      tr '\0' '\n' <"$process/environ" | grep -qxF "SLURM_CONF=$folder/slurm.conf" \
        && kill -KILL "${process#/proc/}"
    done
    wait
  } >/dev/null 2>&1 || true
  rm -rf "$folder"
  exit "$status"
}
trap tear_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  echo "slurm_here: $1; the logs end like this:" >&2
  tail -n 5 "$folder"/*.log >&2 || true
  exit 1
}

ports=($(python3 - "$nodes" <<'PYTHON'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]) + 1)]
for one in sockets:
    one.bind(("127.0.0.1", 0))
print(*(one.getsockname()[1] for one in sockets))
PYTHON
))

host="$(hostname -s)"
user="$(id -un)"
cat >"$folder/slurm.conf" <<CONFIG
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
PartitionName=here Nodes=ALL Default=YES State=UP
CONFIG
for node in $(seq "$nodes"); do
  echo "NodeName=here$node NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[$node]} CPUs=8" \
    >>"$folder/slurm.conf"
  mkdir "$folder/here$node"
done
mkdir "$folder/state"
export SLURM_CONF="$folder/slurm.conf"

(umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
# --force: of a folder below the one for temporary files it would warn.
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" \
  --log-file="$folder/munged.log" --pid-file="$folder/munged.pid" \
  --seed-file="$folder/munged.seed" 2>"$folder/start.log" || fail "munged does not start"
slurmctld -D >"$folder/start.log" 2>&1 &
daemons+=($!)
for node in $(seq "$nodes"); do
  slurmd -D -N "here$node" >>"$folder/start.log" 2>&1 &
  daemons+=($!)
done

# Slurm tells nobody when it is ready: ask for at most 30 seconds.
for _ in $(seq 300); do
  kill -0 "${daemons[@]}" 2>/dev/null || fail "a daemon ended"
  [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = "$nodes" ] && ready=yes && break
  sleep 0.1
done
[ "${ready:-}" = yes ] || fail "the nodes are not ready after 30 seconds"

# In the background, so that a signal ends it and the cluster at once; with its input and with Ctrl-C
# working, both of which a shell takes from what it starts like this.
env --default-signal=INT,QUIT "$@" <&0 &
command_process=$!
wait "$command_process"
