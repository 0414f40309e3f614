"""Stylise pictures, or folders of pictures, with a trained student."""

from command import run

from student_jax.stylise_files import StyliseConfig, stylise_files

if __name__ == "__main__":
    run(stylise_files, StyliseConfig, __doc__)
