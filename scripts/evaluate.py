"""Compare a student with its teacher on held-out triplets, beside two simple baselines."""

from command import run

from student_jax.evaluate import EvaluateConfig, evaluate

if __name__ == "__main__":
    run(evaluate, EvaluateConfig, __doc__)
