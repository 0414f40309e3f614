import os

import pytest


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What fsync protects from, a power failure, does not happen in a test; it takes minutes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
