#!/bin/bash
# The dump on a Ray cluster; run it on the head, again to continue. All machines find the pictures
# and the model at the same paths, on a shared file system or baked into the image.
set -euo pipefail
style-distil dump \
    --content /data/photos --style /data/paintings --model /data/stable-diffusion-v1-5 \
    --out "${OUT:-s3://my-bucket/triplets}" --logging-dir "${LOGS:-s3://my-bucket/logs}" \
    --executor ray --tasks 2048 --workers 64 --gpus-per-task 1 --cpus-per-task 8
