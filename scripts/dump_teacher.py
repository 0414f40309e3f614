"""A door to `style-distil dump`."""

import sys

from style_distil.command import main

if __name__ == "__main__":
    main(["dump", *sys.argv[1:]])
