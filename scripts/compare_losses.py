"""Repeat the study's experiment: L1, L2 and L3 from the same start, over several seeds."""

from command import run

from experiments.compare_losses import CompareConfig, compare_losses

if __name__ == "__main__":
    run(compare_losses, CompareConfig, __doc__)
