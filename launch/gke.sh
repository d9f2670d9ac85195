#!/usr/bin/env bash
# Runs on TPUs of GKE: one pod a host, by a JobSet or by xpk.
#
#   launch/gke.sh apply|xpk|status|logs|delete --name=NAME
#     --image=REGISTRY/grpo_jax:TAG --accelerator=tpu-v5p-slice
#     --topology=4x4x4 [--chips=4] [--slices=1] [--restarts=10]
#     [--account=KUBERNETES_SERVICE_ACCOUNT] [--namespace=default]
#     [--cluster=NAME --type=v5p-128] [--dry_run]
#     -- --config=experiments/NAME.py --workdir=/mnt/runs/NAME
#
# --chips are those of a host. apply fills launch/jobset.yaml in and gives it to
# kubectl; --dry_run prints the manifest. xpk needs --cluster and --type. The
# image is that of launch/Dockerfile. A pod that is preempted or evicted restarts
# all, and is not counted; --restarts counts other failures.

set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

action=${1:-}
case $action in
  apply | xpk | status | logs | delete) shift ;;
  --help) usage 0 ;;
  *) die "The first argument is apply, xpk, status, logs or delete." ;;
esac
name="" image="" accelerator="" topology="" chips=4 slices=1 restarts=10
account=default namespace=default cluster="" type=""
while (($#)); do
  case $1 in
    --name=*) name=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --accelerator=*) accelerator=${1#*=} ;;
    --topology=*) topology=${1#*=} ;;
    --chips=*) chips=${1#*=} ;;
    --slices=*) slices=${1#*=} ;;
    --restarts=*) restarts=${1#*=} ;;
    --account=*) account=${1#*=} ;;
    --namespace=*) namespace=${1#*=} ;;
    --cluster=*) cluster=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --dry_run) DRY_RUN=1 ;;
    --help) usage 0 ;;
    --) shift && break ;;
    *) die "Unknown argument $1; see --help." ;;
  esac
  shift
done
# A pod's host name has it, two numbers of a job, and 63 letters at most.
[[ $name =~ ^[a-z]([-a-z0-9]{0,30}[a-z0-9])?$ ]] ||
  die "--name=$name must be lower-case letters, digits and -, at most 32."
positive --slices "$slices"
positive --chips "$chips"
[[ $restarts =~ ^[0-9]+$ ]] || die "--restarts=$restarts must be a number."
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kube=(kubectl "--namespace=$namespace")

# Sets `hosts` to those of a slice.
count_hosts() {
  local size product=1
  [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] ||
    die "--topology=$topology must be such as 4x4 or 4x4x4."
  for size in ${topology//x/ }; do product=$((product * size)); done
  ((product % chips == 0)) ||
    die "--topology=$topology has $product chips, no multiple of --chips=$chips."
  hosts=$((product / chips))
}

# Prints a word of a command as a JSON string.
quoted() {
  local word=${1//\\/\\\\} variable="\$("
  [[ $word != *[$'\n\t']* ]] || die "A flag has a line break or a tab in it."
  word=${word//\"/\\\"}
  # Kubernetes would read it as a variable of its own.
  word=${word//"$variable"/"\$$variable"}
  printf '"%s"' "$word"
}

# Prints the manifest.
manifest() {
  local words="" word text
  for word in bash launch/worker.sh --restarts=0 \
    "--processes=$((slices * hosts))" -- "$@"; do
    words+="${words:+, }$(quoted "$word")"
  done
  text=$(grep -v '^ *#' launch/jobset.yaml)
  text=${text//@NAME@/"$name"}
  text=${text//@IMAGE@/"\"$image\""}
  text=${text//@ACCELERATOR@/"$accelerator"}
  text=${text//@TOPOLOGY@/"$topology"}
  text=${text//@CHIPS@/"$chips"}
  text=${text//@HOSTS@/"$hosts"}
  text=${text//@SLICES@/"$slices"}
  text=${text//@RESTARTS@/"$restarts"}
  text=${text//@ACCOUNT@/"$account"}
  text=${text//@PORT@/"$JAX_COORDINATOR_PORT"}
  text=${text//@COMMAND@/"[$words]"}
  printf '%s\n' "$text"
}

case $action in
  apply)
    needed --image "$image"
    needed --accelerator "$accelerator"
    needed --topology "$topology"
    count_hosts
    experiment "$@"
    say "$((slices * hosts)) processes are expected: $slices slice(s) of" \
      "$topology with $hosts host(s) each; they have $JOIN_TIMEOUT s to join."
    if [[ -n $DRY_RUN ]]; then
      run "${kube[@]}" apply --filename=- | sed 's/^/# /'
      manifest "$@"
    else
      manifest "$@" | "${kube[@]}" apply --filename=-
    fi
    ;;
  xpk)
    needed --image "$image"
    needed --cluster "$cluster"
    needed --type "$type"
    experiment "$@"
    printf -v command '%q ' bash launch/worker.sh --restarts=0 -- "$@"
    say "One process a host of $slices slice(s) of $type is expected; they have" \
      "$JOIN_TIMEOUT s to join."
    run xpk workload create "--cluster=$cluster" "--workload=$name" \
      "--tpu-type=$type" "--num-slices=$slices" "--docker-image=$image" \
      "--max-restarts=$restarts" \
      "--env=JAX_COORDINATOR_PORT=$JAX_COORDINATOR_PORT" \
      "--command=${command% }"
    ;;
  status) run "${kube[@]}" get jobset,pods \
    "--selector=jobset.sigs.k8s.io/jobset-name=$name" ;;
  logs) run "${kube[@]}" logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0" ;;
  delete) run "${kube[@]}" delete jobset "$name" ;;
esac
