#!/usr/bin/env bash
# Submits a run to SLURM, on GPUs or CPUs.
#
#   launch/slurm.sh [--nodes=1] [--gpus=0] [--tasks=N] [--cpus=8] [--time=24:00:00]
#     [--partition=NAME] [--account=NAME] [--restarts=20] [--dry_run]
#     -- --config=experiments/NAME.py --workdir=DIR
#
# --gpus, --tasks and --cpus are per node, per node, and per task. JAX gives each
# task one GPU of its node, so there are as many tasks as GPUs, and one task a
# node on CPUs. DIR must be seen by all nodes. launch/slurm.sbatch says what
# happens when the job is preempted.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

nodes=1 gpus=0 tasks="" cpus=8 time=24:00:00 restarts=20 more=()
while (($#)); do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --gpus=*) gpus=${1#*=} ;;
    --tasks=*) tasks=${1#*=} ;;
    --cpus=*) cpus=${1#*=} ;;
    --time=*) time=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --partition=* | --account=* | --qos=* | --constraint=* | --output=*)
      more+=("$1")
      ;;
    --dry_run) DRY_RUN=1 ;;
    --help) usage 0 ;;
    --) shift && break ;;
    *) die "Unknown argument $1; see --help." ;;
  esac
  shift
done
[[ $gpus =~ ^[0-9]+$ ]] || die "--gpus=$gpus must be a number."
((gpus)) && tasks=${tasks:-$gpus}
tasks=${tasks:-1}
positive --nodes "$nodes"
positive --tasks "$tasks"
positive --cpus "$cpus"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts must be a number."
((gpus == 0 || tasks == gpus)) ||
  die "--tasks=$tasks must be --gpus=$gpus: JAX gives each task one GPU."
experiment "$@"
((gpus)) && more+=("--gpus-per-node=$gpus")

cd "$(dirname "${BASH_SOURCE[0]}")/.."
say "$((nodes * tasks)) processes are expected, on $nodes nodes, within" \
  "$JOIN_TIMEOUT s of the job's start."
run sbatch "--nodes=$nodes" "--ntasks-per-node=$tasks" \
  "--cpus-per-task=$cpus" "--time=$time" \
  "--export=ALL,GRPO_JAX_RESTARTS=$restarts" "${more[@]}" \
  launch/slurm.sbatch "$@"
