# What the scripts of this folder share; sourced, never run.
# shellcheck shell=bash

# Google's firewall rules and our manifests open this port; JAX's own default
# has changed between versions.
export JAX_COORDINATOR_PORT="${JAX_COORDINATOR_PORT:-8476}"
# Seconds for all processes to come: hosts of a pod install at their own pace.
# shellcheck disable=SC2034  # The scripts read it.
readonly JOIN_TIMEOUT=1800

DRY_RUN="${DRY_RUN:-}"

say() { printf '%s\n' "$*" >&2; }

die() {
  say "$*"
  exit 2
}

# Prints a command, and runs it unless --dry_run was given.
run() {
  if [[ -n $DRY_RUN ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    printf '\n'
  else
    "$@"
  fi
}

# Sets `python`: $PYTHON, or that of the repository's environment.
# shellcheck disable=SC2034
find_python() {
  python=${PYTHON:-python3}
  if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then
    python=.venv/bin/python
  fi
}

# Says what a script takes: the comment at its head.
usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
  exit "${1:-2}"
}

# Ends unless a value is a positive number.
positive() {
  [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1=$2 must be a positive number."
}

# Ends unless a value is given.
needed() {
  [[ -n $2 ]] || die "$1 is missing; see --help."
}

# Ends unless there are flags for grpo_jax.main, with its experiment.
experiment() {
  local flag
  for flag in "$@"; do
    [[ $flag == --config=* ]] && return
  done
  die "Nothing to run: put -- --config=experiments/NAME.py --workdir=DIR last."
}
