#!/bin/bash
# A study on the nodes of one Slurm job: `sbatch slurm.sh study.toml`.
#
# Ray is started on every node, the study runs from the first one, and Ray is stopped again. Submitted once more, or
# requeued by Slurm, it goes on where it stopped: a cell that is done is not run again.
#SBATCH --job-name=cwtool-study
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --requeue

set -euo pipefail
study=${1:?which study: sbatch slurm.sh study.toml}

# An environment that all nodes see: python3 -m venv ~/cwtool && ~/cwtool/bin/pip install 'cwtool[cluster]'
export PATH="$HOME/cwtool/bin:$PATH"

# On a disk that all nodes share. The study and its runs are in the first folder, models in the second; download them
# beforehand where nodes have no network: `cwtool models pull NAME` on the login node.
export CWTOOL_HOME="$HOME/cwtool-state"
export HF_HOME="${SCRATCH:-$HOME}/huggingface"
export HF_HUB_OFFLINE=1

# Without a token anybody who reaches a port of Ray's runs what they like as you.
export RAY_AUTH_MODE=token
ray get-auth-token --generate > /dev/null # in ~/.ray/auth_token, which all nodes see

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would end the pipe, and with it the job
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --all-ip-addresses | awk 'NR == 1 { print $1 }'):6379
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds until all nodes must be there; 30, if not said

# For models that need two GPUs each: --gpus 2
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" --disable-usage-stats -- \
  cwtool study run "$study" --on ray:auto
