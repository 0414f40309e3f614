"""Compare what a picture costs teachers and students on this machine."""

from command import run

from experiments.cost import CostConfig, measure_costs

if __name__ == "__main__":
    run(measure_costs, CostConfig, __doc__)
