import errno
import os

import pytest

from triplets import one_line


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "there"), "Permission denied"),
        (OSError("the network is down."), "the network is down"),
        (ValueError("\n  it has  no colours.\nTry another one.\n"), "it has no colours"),
        (KeyError("size"), "'size'"),
        (EOFError(), "EOFError"),
    ],
)
def test_reason_in_one_line(error, reason):
    assert one_line(error) == reason
