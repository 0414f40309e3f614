"""How every command starts and fails."""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

import tyro

from triplets import InputError

Config = TypeVar("Config")


def run(
    main: Callable[[Config], None],
    config: type[Config] | Mapping[str, tuple[str, Config]],
    description: str,
) -> None:
    """Parse the command line into a config, or one of several named presets, and call `main`.

    What a user can cause ends in one sentence on stderr; a traceback always means a defect. Exit
    status 2: the command line makes no sense whatever the files hold, and so the config's
    constructor, or the parser, refuses it. 1: anything else that was given cannot be used. 130: an
    interruption.
    """
    # Orbax comments on its own options in warnings that are of no use to a user.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if isinstance(config, Mapping):
        config = tyro.extras.subcommand_type_from_defaults(
            {name: default for name, (_, default) in config.items()},
            {name: text for name, (text, _) in config.items()},
            prefix_names=False,
        )
    try:
        main(tyro.cli(config, description=description))
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        # The number that Python puts first means nothing to a user; the file does.
        of_file = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {of_file}{error.strerror or error}")
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
