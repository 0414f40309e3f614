"""Stylise N contents with M styles by StyleID and write the triplets as NumPy arrays."""

from command import run

from teacher_torch.dump import DumpConfig, dump

if __name__ == "__main__":
    run(dump, DumpConfig, __doc__)
