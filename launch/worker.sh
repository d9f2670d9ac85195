#!/usr/bin/env bash
# Runs one process of a run, on the host that it is on; again where it was ended.
#
#   launch/worker.sh [--processes=N] [--restarts=N] [--exec] [--dry_run] -- FLAGS
#
# The other scripts of this folder start it on every host. --processes is only
# told: on TPUs, under SLURM and on GKE the processes find each other by
# themselves; elsewhere FLAGS, those of grpo_jax.main, have --coordinator, --num_processes and
# --process_id.
# After an error the same command goes on from the newest checkpoint, up to
# --restarts times (10); one that fails three times within two minutes each is
# left. With --exec the process takes the place of this script, and whoever
# started it starts it again. A run that a signal stopped has saved and is not
# finished: it ends with 143. Python is $PYTHON, or that of .venv, or python3.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes="" restarts=10 replace=""
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --exec) replace=1 ;;
    --dry_run) DRY_RUN=1 ;;
    --help) usage 0 ;;
    --) shift && break ;;
    *) die "Unknown argument $1; see --help." ;;
  esac
  shift
done
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts must be a number."
experiment "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
find_python
lock=${LIBTPU_LOCKFILE:-/tmp/libtpu_lockfile}
# Others notice within 30 seconds that a process is gone, and end too.
pause=${RESTART_PAUSE:-45}
brief=120

# Whether a living process has the file open.
in_use() {
  local link
  for link in /proc/[0-9]*/fd/*; do
    [[ $(readlink "$link" 2>/dev/null) == "$1" ]] && return 0
  done
  return 1
}

# libtpu leaves its lock when it is killed, and then refuses to start.
remove_stale_lock() {
  [[ -e $lock && -O $lock ]] || return 0
  if in_use "$lock"; then
    say "$lock is held by a living process: another run is on this host."
  else
    say "Removing $lock, which a dead process of ours left."
    run rm -f "$lock"
  fi
}

say "$(hostname): one of ${processes:-an unknown number of} processes; all are" \
  "expected within $JOIN_TIMEOUT s."
stopped="" child=""
on_signal() {
  stopped=1
  [[ -n $child ]] && kill -TERM "$child" 2>/dev/null
}
trap on_signal TERM INT HUP

command=("$python" -m grpo_jax.main "--join_timeout=$JOIN_TIMEOUT" "$@")
if [[ -n $replace && -z $DRY_RUN ]]; then
  remove_stale_lock
  exec "${command[@]}"
fi
# A group of its own: Ctrl-C comes once, through this script.
set -m
quick=0
for ((attempt = 0; ; attempt++)); do
  remove_stale_lock
  if [[ -n $DRY_RUN ]]; then
    run env "JAX_COORDINATOR_PORT=$JAX_COORDINATOR_PORT" "${command[@]}"
    exit 0
  fi
  began=$SECONDS status=0
  "${command[@]}" &
  child=$!
  # A signal ends a wait, and not the process that is waited for.
  while :; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  if [[ -n $stopped ]]; then
    say "$(hostname): stopped by a signal; the same command goes on."
    exit 143
  fi
  ((status == 0)) && exit 0
  if ((SECONDS - began < brief)); then ((++quick)); else quick=0; fi
  if ((attempt >= restarts || quick >= 3)); then
    say "$(hostname): ended with status $status, and is not started again."
    exit "$status"
  fi
  say "$(hostname): ended with status $status; again in $pause s" \
    "($((attempt + 1)) of $restarts)."
  sleep "$pause" &
  wait $! || true
  [[ -z $stopped ]] || exit 143
done
