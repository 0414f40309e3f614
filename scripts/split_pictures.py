"""Split a folder of pictures into those to train on and the test split, a tenth."""

from command import run

from triplets.split import SplitConfig, split_pictures

if __name__ == "__main__":
    run(split_pictures, SplitConfig, __doc__)
