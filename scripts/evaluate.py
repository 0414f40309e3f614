"""Measure a student, a teacher's dump or anyone's results beside three baselines."""

from command import run

from student_jax.evaluation.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    run(evaluate, EvaluateConfig, __doc__)
