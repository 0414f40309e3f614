"""Studies that help to decide: number of triplets, styles, size of the student, Gram reduction."""

from command import run

from experiments.ablations import AblationConfig, ablate

if __name__ == "__main__":
    run(ablate, AblationConfig, __doc__)
