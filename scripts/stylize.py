"""Stylise pictures, or folders of pictures, with a trained student."""

from command import run

from student_jax.inference.command import StyliseConfig, stylise_files

if __name__ == "__main__":
    run(stylise_files, StyliseConfig, __doc__)
