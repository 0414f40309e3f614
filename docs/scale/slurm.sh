#!/bin/bash
# The driver of a dump on Slurm: it plans, submits an array of tasks and ends.
#
#   sbatch docs/scale/slurm.sh
#
# Submit it again to continue, for example after tasks have failed. The driver gets a GPU like those
# of the tasks, because the first start decides the dtype and the rows per call for all.
#SBATCH --job-name=style-distil-driver
#SBATCH --partition=gpu
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem-per-cpu=4G
#SBATCH --time=00:30:00
#SBATCH --output=style-distil-driver-%j.out
set -euo pipefail

# The array must not take itself for a part of this job.
unset SLURM_ARRAY_TASK_ID

source "$HOME/style-distil/.venv/bin/activate"
style-distil dump \
    --content /data/photos --style /data/paintings --model /data/stable-diffusion-v1-5 \
    --out "${OUT:-s3://my-bucket/triplets}" --logging-dir "${LOGS:-$HOME/style-distil-logs}" \
    --executor slurm --partition gpu --tasks 2048 --workers 64 \
    --gpus-per-task 1 --cpus-per-task 8 --memory-per-cpu 4 --time-limit 04:00:00 \
    --setup "source $HOME/style-distil/.venv/bin/activate"
