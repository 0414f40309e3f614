#!/bin/sh
# Makes the two bundled models again: benchmarks/reproduce_mini.sh PHOTOS PAINTINGS OUT
#
# PHOTOS and PAINTINGS are folders of pictures; a tenth of each, by file name, is the test
# split, which no training sees. Every step continues after an interruption; two CPU cores take about
# eight hours for all.
set -eu
photos=$1 paintings=$2 out=$3
style_distil=${STYLE_DISTIL:-.venv/bin/style-distil}

# The teacher: its first edition, then the second, whose UNet goes on.
$style_distil pretrain --photos "$photos" --paintings "$paintings" \
    --ema-decay 0.995 --latent-pool 6400 --unet-steps 1600 \
    --workdir "$out/teacher_first" --out "$out/teacher_first/model"
$style_distil pretrain --photos "$photos" --paintings "$paintings" \
    --init-from "$out/teacher_first/model" --autoencoder-steps 0 \
    --ema-decay 0.995 --latent-pool 3072 --unet-steps 3260 --unet-lr 4e-3 \
    --workdir "$out/teacher" --out "$out/teacher/model"

# Its triplets: random tiles of the pictures to train on, and a tile of the test split, and its
# figures.
$style_distil triplets split --pictures "$photos" --out "$out/photos"
$style_distil triplets split --pictures "$paintings" --out "$out/paintings"
$style_distil dump --model "$out/teacher/model" --steps 10 --dtype bfloat16 \
    --content "$out/photos/train" --style "$out/paintings/train" --pairs tiles:60 \
    --out "$out/triplets"
$style_distil dump --model "$out/teacher/model" --steps 10 --dtype bfloat16 \
    --content "$out/photos/test" --style "$out/paintings/test" --pairs tiles:1 \
    --out "$out/triplets_test"
$style_distil evaluate --data "$out/triplets_test" --out "$out/teacher_measures"

# The student: colours from small pictures first, then texture; and its figures.
$style_distil train mini --data "$out/triplets" --validation "$out/triplets_test" \
    --workdir "$out/colours" --loss L1 --image-size 64 --crop-size 64 --batch-size 32 \
    --steps 1000 --warmup-steps 50 --learning-rate 2e-3 --ema-decay 0.99 \
    --checkpoint-every 250 --validation-pairs 16 --resume
$style_distil train mini --data "$out/triplets" --validation "$out/triplets_test" \
    --workdir "$out/student" --init-from "$out/colours" --loss texture --features-crop 128 \
    --crop-size 192 --steps 2500 --warmup-steps 20 --learning-rate 1e-3 --ema-decay 0.99 \
    --checkpoint-every 200 --validation-pairs 16 --resume
$style_distil evaluate --checkpoint "$out/student" --data "$out/triplets_test" \
    --out "$out/student_measures"
