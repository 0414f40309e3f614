import sys

import numpy as np
import pytest

from triplets import memory
from triplets.memory import PeakGrowth, peak_bytes


def test_growth_is_that_of_the_block_alone():
    np.ones(300_000_000, np.uint8)  # forgotten
    with PeakGrowth() as grown:
        np.ones(100_000_000, np.uint8)  # freed, yet it counts
    if sys.platform == "linux":
        assert grown.bytes == pytest.approx(100e6, rel=0.05)
    else:
        assert grown.bytes is None


def test_nothing_is_known_where_the_system_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "missing")
    with PeakGrowth() as grown:
        pass
    assert grown.bytes is None
    assert peak_bytes() is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
def test_the_peak_stays_when_its_memory_is_freed():
    with PeakGrowth():  # the peak is now the memory of this moment
        before = peak_bytes()
    np.ones(100_000_000, np.uint8)
    assert peak_bytes() - before == pytest.approx(100e6, rel=0.05)
    assert peak_bytes() - before == pytest.approx(100e6, rel=0.05)
