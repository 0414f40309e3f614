"""A door to `style-distil stylize`."""

import sys

from style_distil.command import main

if __name__ == "__main__":
    main(["stylize", *sys.argv[1:]])
