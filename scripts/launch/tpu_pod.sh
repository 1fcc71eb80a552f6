#!/usr/bin/env bash
# The same command on every host of a Cloud TPU pod slice, from a machine with gcloud; JAX finds the hosts from the pod's metadata:
#   TPU=my-pod ZONE=us-central2-b scripts/launch/tpu_pod.sh train imagenet-convnext --out /mnt/bucket/runs/imagenet
# The hosts have the package installed in $VENV (default: ddpm-jax/.venv in the home directory).
# The run folder must be one that all hosts see: a mounted bucket or a network file system.
set -euo pipefail

: "${TPU:?is the name of the TPU: TPU=my-pod ZONE=us-central2-b tpu_pod.sh train PRESET --out RUN}"
: "${ZONE:?is the zone of the TPU}"
VENV="${VENV:-ddpm-jax/.venv}"
[ "$#" -gt 0 ] || { echo "tpu_pod.sh needs a command of ddpm" >&2; exit 2; }

command="$(printf '%q ' "$VENV/bin/ddpm" "$@" --parallel.detect)"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$command"
