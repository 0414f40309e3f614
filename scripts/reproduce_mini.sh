#!/bin/sh
# Makes the two bundled models again: scripts/reproduce_mini.sh PHOTOS PAINTINGS OUT
#
# PHOTOS and PAINTINGS are folders of pictures; a tenth of each, by file name, is held out of all
# training. Every step continues after an interruption; two CPU cores take about five hours for all.
set -eu
photos=$1 paintings=$2 out=$3
python=${PYTHON:-.venv/bin/python}

# The teacher, and the figures of its autoencoder and inversion.
$python scripts/pretrain_mini_teacher.py --photos "$photos" --paintings "$paintings" \
    --ema-decay 0.995 --latent-pool 6400 --unet-steps 1600 \
    --workdir "$out/teacher" --out "$out/teacher/model"
$python scripts/measure_teacher.py --photos "$photos" --paintings "$paintings" \
    --model "$out/teacher/model" --out "$out/teacher_measures"

# Its triplets: random tiles of the pictures to train on, and a tile of the held-out ones.
$python scripts/split_pictures.py --pictures "$photos" --out "$out/photos"
$python scripts/split_pictures.py --pictures "$paintings" --out "$out/paintings"
$python scripts/dump_teacher.py --model "$out/teacher/model" --steps 10 --dtype bfloat16 \
    --content "$out/photos/train" --style "$out/paintings/train" --pairs tiles:60 \
    --out "$out/triplets"
$python scripts/dump_teacher.py --model "$out/teacher/model" --steps 10 --dtype bfloat16 \
    --content "$out/photos/held_out" --style "$out/paintings/held_out" --pairs tiles:1 \
    --out "$out/triplets_held_out"

# The student: colours from small pictures first, then texture; and its figures.
$python scripts/train_flax.py mini --data "$out/triplets" --validation "$out/triplets_held_out" \
    --workdir "$out/colours" --loss L1 --image-size 64 --crop-size 64 --batch-size 32 \
    --steps 1000 --warmup-steps 50 --learning-rate 2e-3 --ema-decay 0.99 \
    --checkpoint-every 250 --validation-pairs 16 --resume
$python scripts/train_flax.py mini --data "$out/triplets" --validation "$out/triplets_held_out" \
    --workdir "$out/student" --init-from "$out/colours" --loss texture --features-crop 128 \
    --crop-size 192 --steps 2500 --warmup-steps 20 --learning-rate 1e-3 --ema-decay 0.99 \
    --checkpoint-every 200 --validation-pairs 16 --resume
$python scripts/evaluate.py --checkpoint "$out/student" --data "$out/triplets_held_out" \
    --out "$out/student_measures"
