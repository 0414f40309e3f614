"""Measurements in processes of their own: what one leaves in memory is not counted for the next."""

import json
import subprocess
import sys


def table_cells(script: str, worker: dict, limit_s: float) -> list[str] | None:
    """The cells that `script --worker JSON` prints as its last line, in JSON.

    Args:
        script: path of the program.
        worker: what it is to measure.
        limit_s: seconds after which it is given up, and None returned.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, script, "--worker", json.dumps(worker)]
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return None
    return json.loads(done.stdout.splitlines()[-1])
