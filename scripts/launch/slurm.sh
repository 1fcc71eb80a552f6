#!/usr/bin/env bash
# Training on several nodes of a Slurm cluster, one process for each GPU; JAX finds the others from Slurm's environment:
#   sbatch --nodes 4 scripts/launch/slurm.sh imagenet-convnext --parallel fsdp --out /shared/runs/imagenet
# The arguments are those of `ddpm train`. The run folder must be on a file system that all nodes share.
# Sent again, the same command goes on from the newest checkpoint. It sends itself again where its time is over and it got on.
#SBATCH --job-name=ddpm
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --open-mode=append
# a checkpoint two minutes before the time is over:
#SBATCH --signal=INT@120
set -euo pipefail

out=""
previous=""
for argument in "$@"; do
    case "$argument" in --out=*) out="${argument#--out=}" ;; esac
    if [ "$previous" = --out ]; then out="$argument"; fi
    previous="$argument"
done
[ -n "$out" ] || { echo "slurm.sh needs --out RUN among the arguments of ddpm train" >&2; exit 2; }
resume=()
[ ! -e "$out/config.json" ] || resume=(--resume)

newest() { { ls "$out/checkpoints" 2>/dev/null || true; } | sort -n | tail -n 1; }

# what a cluster's proxies are for is not the way from node to node
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY
before="$(newest)"
status=0
srun --kill-on-bad-exit=1 ddpm train "$@" "${resume[@]}" || status=$?
# 130: ended by the signal that Slurm sends before the time is over
if [ "$status" = 130 ] && [ "$(newest)" != "$before" ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
