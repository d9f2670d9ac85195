#!/usr/bin/env bash
# Runs N processes on this machine, and all again where one was killed.
#
#   launch/local.sh --processes=2 [--devices=4] [--port=8476] [--restarts=10]
#     [--logs=DIR] [--dry_run] -- --config=experiments/NAME.py --workdir=DIR
#
# --devices are CPU devices of each process; without it a process takes what
# JAX finds (several processes on the GPUs of one machine: CUDA_VISIBLE_DEVICES
# is set to one GPU each). The first process prints here, the others write
# DIR/process-I.log (by default a folder of /tmp that is named).

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

processes=2 devices="" restarts=10 logs="" port=$JAX_COORDINATOR_PORT
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --logs=*) logs=${1#*=} ;;
    --dry_run) DRY_RUN=1 ;;
    --help) usage 0 ;;
    --) shift && break ;;
    *) die "Unknown argument $1; see --help." ;;
  esac
  shift
done
positive --processes "$processes"
positive --port "$port"
[[ -z $devices ]] || positive --devices "$devices"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts must be a number."
experiment "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
find_python
gpus=0
if [[ -z $devices ]] && command -v nvidia-smi >/dev/null; then
  gpus=$(nvidia-smi --list-gpus | wc -l)
  ((processes == 1 || processes <= gpus)) ||
    die "--processes=$processes on $gpus GPUs: at most one process a GPU."
fi

say "$processes processes are expected at 127.0.0.1:$port, within" \
  "$JOIN_TIMEOUT s."
if [[ -z $DRY_RUN ]]; then
  [[ -n $logs ]] || logs=$(mktemp -d /tmp/grpo_jax.XXXXXX)
  mkdir -p "$logs"
  say "Processes but the first write to $logs/process-I.log."
fi

# Sets `command` to the command of one process, with its environment.
command_of() {
  local settings=()
  if [[ -n $devices ]]; then
    settings=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$devices")
  elif ((gpus && processes > 1)); then
    settings=("CUDA_VISIBLE_DEVICES=$1")
  fi
  command=(
    env "${settings[@]}" "$python" -m grpo_jax.main
    "--coordinator=127.0.0.1:$port" "--num_processes=$processes"
    "--process_id=$1" "--join_timeout=$JOIN_TIMEOUT" "${@:2}"
  )
}

pids=() stopped=""
signal_all() {
  local pid
  for pid in "${pids[@]}"; do
    [[ -z $pid ]] || kill "-$1" "$pid" 2>/dev/null || true
  done
}
on_signal() {
  stopped=1
  signal_all TERM
}
trap on_signal TERM INT HUP

# Runs all processes to their end; `worst` is the greatest status.
all_at_once() {
  local i status running ends=""
  pids=() worst=0
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    if ((i == 0)); then
      "${command[@]}" &
    else
      "${command[@]}" >>"$logs/process-$i.log" 2>&1 &
    fi
    pids+=($!)
  done
  running=$processes
  while ((running)); do
    sleep 1 || true
    for i in "${!pids[@]}"; do
      [[ -n ${pids[i]} ]] || continue
      kill -0 "${pids[i]}" 2>/dev/null && continue
      status=0
      wait "${pids[i]}" || status=$?
      pids[i]="" running=$((running - 1))
      ((status <= worst)) || worst=$status
      ((status == 0)) || say "Process $i ended with status $status."
    done
    # The others notice within 30 seconds, and say so; or they hang.
    if ((worst && running)); then
      ends=${ends:-$((SECONDS + 120))}
      ((SECONDS < ends)) || signal_all KILL
    fi
  done
}

if [[ -n $DRY_RUN ]]; then
  for ((i = 0; i < processes; i++)); do
    command_of "$i" "$@"
    run "${command[@]}"
  done
  exit 0
fi
# Groups of their own: Ctrl-C comes once, through this script.
set -m
for ((attempt = 0; ; attempt++)); do
  all_at_once "$@"
  [[ -z $stopped ]] || exit 143
  ((worst == 0)) && exit 0
  # Above 128 one was killed. Else it said what is wrong, and would again.
  if ((worst <= 128 || attempt >= restarts)); then
    exit "$worst"
  fi
  say "A process was killed; all go on from the newest checkpoint" \
    "($((attempt + 1)) of $restarts)."
done
