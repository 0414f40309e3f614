"""Distil a teacher's triplets into an STTR student."""

import tyro
from command import run

from student_jax.training.config import TrainConfig
from student_jax.training.train import train

PRESETS = {
    name: (preset.__doc__, preset(data=tyro.MISSING, workdir=tyro.MISSING))
    for name, preset in (("mini", TrainConfig.mini), ("reference", TrainConfig.reference))
}

if __name__ == "__main__":
    run(train, PRESETS, __doc__)
