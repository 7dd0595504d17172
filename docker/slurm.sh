#!/usr/bin/env bash
# sbatch docker/slurm.sh NAME=小明 MODEL=internlm2-chat-1_8b RUN=cluster
#   `make eval` with the same words, the training on every GPU of the job's nodes. From the checkout, on a file system that all
#   nodes share; more nodes or GPUs: sbatch --nodes=4 --gpus-per-node=8 docker/slurm.sh … Where compute nodes reach no network,
#   run `make model` on a login node first.
#SBATCH --job-name=identity
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"

GPUS=${SLURM_GPUS_ON_NODE:?the job has no GPUs: ask for some with --gpus-per-node}
NNODES=$SLURM_JOB_NUM_NODES
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # jobs may share a node
export GPUS NNODES

# Everything before the training once, here; then the training on every node; and what follows it here again.
make config "$@"
export MASTER_ADDR MASTER_PORT
# shellcheck disable=SC2016 # each task's own number
srun --ntasks="$NNODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
  bash -c 'NODE_RANK=$SLURM_PROCID exec make train "$@"' train "$@"
unset MASTER_ADDR MASTER_PORT
make eval "$@"
