#!/bin/bash
# One run of covpool on several nodes, which Slurm may stop and put back into the queue at will:
#
#     sbatch examples/slurm.sh runs/birds --data.root /data/birds --model.backbone resnet50
#
# The first argument is the run directory, on a file system that every node sees; the others are
# options of `covpool train`. The same command starts the run, goes on with it, and does nothing
# once it has finished, so that a requeued job needs no other.
#SBATCH --job-name=covpool
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the limit, every task is told to save and end. Give it longer than one epoch's
# evaluation takes: within one the run does not stop.
#SBATCH --signal=USR1@120

set -u
output=${1:?"the run directory is missing: sbatch $0 DIRECTORY [options of covpool train]"}
shift

srun --kill-on-bad-exit=1 covpool train --output "$output" --resume auto \
  --train.nodes "$SLURM_NNODES" --train.devices "$SLURM_NTASKS_PER_NODE" \
  --data.workers "$((SLURM_CPUS_PER_TASK - 1))" "$@"
status=$?

# 138 = 128 + SIGUSR1: saved, with work left. After a preemption (SIGTERM) or the loss of a node,
# --requeue alone puts the job back.
if [ "$status" -eq 138 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
