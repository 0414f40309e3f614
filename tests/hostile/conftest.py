"""The hostile day: damaged files, broken requests, senseless command lines, killed processes.

A table shows what became of them.

    HOSTILE_SCALE=1 python -m pytest -m slow tests/hostile

HOSTILE_SCALE multiplies the numbers of cases, HOSTILE_SEED (0) decides them. The table comes at the
end of pytest's output.
"""

import os
from collections.abc import Iterator

import pytest
from attacks import COLUMNS, Attack

# Read when JAX starts: these programs take far longer to compile than to run.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

ATTACKS: list[Attack] = []


@pytest.fixture
def attack(request) -> Attack:
    """The attempts of a test, under its name."""
    ATTACKS.append(Attack(request.node.name.removeprefix("test_").replace("_", " ")))
    return ATTACKS[-1]


def pytest_terminal_summary(terminalreporter) -> None:
    """Print the table."""
    if ATTACKS:
        terminalreporter.section("the hostile day")
        for line in _table():
            terminalreporter.write_line(line)


def _table() -> Iterator[str]:
    yield f"| attack | {' | '.join(COLUMNS)} | bytes lost | peak MiB | s |"
    yield f"| --- |{' ---: |' * (len(COLUMNS) + 3)}"
    for attack in ATTACKS:
        counts = " | ".join(str(attack.counts[column]) for column in COLUMNS)
        costs = f"{attack.bytes_lost} | {attack.peak_mib} | {attack.seconds:.0f}"
        yield f"| {attack.name} | {counts} | {costs} |"
