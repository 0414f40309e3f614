"""`python -m style_distil` is `style-distil`."""

from style_distil.command import main

if __name__ == "__main__":
    main()
