"""How every command starts and fails."""

import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from triplets import InputError

Config = TypeVar("Config")


def run(main: Callable[[Config], None], config_type: type[Config], description: str) -> None:
    """Parse the command line into a config and call `main` with it.

    What a user can cause ends in one sentence on stderr and exit status 1 (2 for wrong flags,
    130 for an interruption); a traceback always means a defect.
    """
    try:
        main(tyro.cli(config_type, description=description))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
