"""A door to `style-distil train`."""

import sys

from style_distil.command import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
