#!/usr/bin/env bash
# Creates Cloud TPU VMs, installs on all workers, runs on all, and deletes.
#
#   launch/tpu_vm.sh create|install|run|status|delete --name=NAME --zone=ZONE
#     --type=v5p-128 [--slices=1] [--version=RUNTIME] [--project=PROJECT]
#     [--spot] [--queued] [--hosts=N] [--restarts=100] [--dry_run]
#     [-- --config=experiments/NAME.py --workdir=/mnt/runs/NAME]
#
# create asks for capacity and waits for it: at once, or in a queue (--queued,
# and always for several slices). install copies this commit and makes .venv on
# every worker. run starts one process on every worker of every slice and shows
# their output; where the slice was preempted it deletes, creates, installs, and
# runs the same command again. delete ends the costs. --hosts is the number of
# workers of a slice, where --type does not tell.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=${1:-}
case $action in
  create | install | run | status | delete) shift ;;
  --help) usage 0 ;;
  *) die "The first argument is create, install, run, status or delete." ;;
esac
name="" zone="" type="" version="" hosts="" slices=1 restarts=100
spot=() project=() queued=""
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --version=*) version=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --hosts=*) hosts=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --project=*) project=("$1") ;;
    --spot) spot=(--spot) ;;
    --queued) queued=1 ;;
    --dry_run) DRY_RUN=1 ;;
    --help) usage 0 ;;
    --) shift && break ;;
    *) die "Unknown argument $1; see --help." ;;
  esac
  shift
done
needed --name "$name"
needed --zone "$zone"
needed --type "$type"
positive --slices "$slices"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts must be a number."
((slices == 1)) || queued=1
cd "$(dirname "${BASH_SOURCE[0]}")/.."
where=("--zone=$zone" "${project[@]}")
# Seconds between questions whether capacity is there.
poll=${POLL_SECONDS:-30}

# v2 to v5p count two cores a chip, of which a host has four; v5e and v6e chips.
if [[ -z $hosts ]]; then
  size=${type##*-}
  [[ $size =~ ^[1-9][0-9]*$ ]] || die "--type=$type must end in -SIZE."
  case $type in
    v2-* | v3-* | v4-* | v5p-*) hosts=$(((size + 7) / 8)) ;;
    v5litepod-* | v6e-*) hosts=$((size <= 8 ? 1 : size / 4)) ;;
    *) die "--hosts is needed: how many workers has a slice of $type?" ;;
  esac
fi
positive --hosts "$hosts"
if [[ -z $version ]]; then
  case $type in
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) version=tpu-ubuntu2204-base ;;
  esac
fi
nodes=("$name")
if ((slices > 1)); then
  nodes=()
  for ((i = 0; i < slices; i++)); do nodes+=("$name-$i"); done
fi
say "$((slices * hosts)) processes are expected: $slices slice(s) of $type with" \
  "$hosts host(s) each; they have $JOIN_TIMEOUT s to join."

tpus() { gcloud compute tpus "$@"; }

# Runs a command on all workers of all slices at once.
on_all() {
  local node pids=() status=0
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" "${where[@]}" --worker=all \
      "--command=$1" &
    pids+=($!)
    # A dry run prints in order.
    [[ -z $DRY_RUN ]] || wait "${pids[-1]}"
  done
  for pid in "${pids[@]}"; do wait "$pid" || status=$?; done
  return "$status"
}

# The state of the request or of the VM; MISSING where there is none.
state() {
  if [[ -n $queued ]]; then
    tpus queued-resources describe "$name" "${where[@]}" \
      "--format=value(state.state)" 2>/dev/null || echo MISSING
  else
    tpus tpu-vm describe "$name" "${where[@]}" "--format=value(state)" \
      2>/dev/null || echo MISSING
  fi
}

create() {
  if [[ -z $queued ]]; then
    run gcloud compute tpus tpu-vm create "$name" "${where[@]}" \
      "--accelerator-type=$type" "--version=$version" "${spot[@]}"
    return
  fi
  local count=("--node-id=$name") now
  ((slices == 1)) || count=("--node-count=$slices" "--node-prefix=$name")
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    "--accelerator-type=$type" "--runtime-version=$version" \
    "${count[@]}" "${spot[@]}"
  [[ -z $DRY_RUN ]] || return 0
  while :; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING | MISSING)
        say "$name is $now: there was no capacity, or no quota."
        return 1
        ;;
    esac
    say "$name is $now."
    sleep "$poll"
  done
}

delete() {
  if [[ -n $queued ]]; then
    # Its nodes too, in whatever state it is.
    run gcloud compute tpus queued-resources delete "$name" "${where[@]}" \
      --force --quiet
  else
    run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}

install() {
  local archive=grpo_jax.tar.gz folder node
  folder=$(mktemp -d)
  # What is committed, so that a run can be told by its commit.
  run git archive --format=tar.gz "--output=$folder/$archive" HEAD
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm scp "$folder/$archive" "$node:" \
      "${where[@]}" --worker=all
  done
  rm -rf "$folder"
  # Images have an older Python than the package needs; uv brings one.
  on_all "set -e; mkdir -p grpo_jax; tar -xzf $archive -C grpo_jax; \
cd grpo_jax; python3 -m pip install --quiet --user uv; \
python3 -m uv venv --quiet --allow-existing --python 3.12 .venv; \
python3 -m uv pip install --quiet --python .venv/bin/python -e '.[tpu]'"
}

# Whether all slices are as they should be.
is_there() {
  case $(state) in ACTIVE | READY) return 0 ;; *) return 1 ;; esac
}

run_all() {
  local command attempt began quick=0
  printf -v command '%q ' bash launch/worker.sh \
    "--processes=$((slices * hosts))" -- "$@"
  for ((attempt = 0; ; attempt++)); do
    began=$SECONDS
    if on_all "cd grpo_jax && JAX_COORDINATOR_PORT=$JAX_COORDINATOR_PORT $command"; then
      return 0
    fi
    ((attempt < restarts)) || die "Given up after $attempt restarts."
    # A signal comes before the state tells of it.
    sleep "$poll"
    if is_there; then
      # Workers start again by themselves what an error ended.
      if ((SECONDS - began < 600)); then ((++quick)); else quick=0; fi
      ((quick < 2)) || die "$name is there, and the run fails at once."
      say "$name is there; the same command again ($((attempt + 1)))."
      continue
    fi
    say "$name was preempted; again ($((attempt + 1)) of $restarts)."
    delete || true
    until create; do
      delete || true
      sleep "$poll"
    done
    install
  done
}

case $action in
  create) create ;;
  install) install ;;
  status) if [[ -n $DRY_RUN ]]; then say "Would ask for the state."; else state; fi ;;
  delete) delete ;;
  run)
    experiment "$@"
    run_all "$@"
    ;;
esac
