from pathlib import Path

import pytest

from triplets import float_from_uint8, read_image

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def lpips_pictures():
    """The example pictures of the LPIPS repository: reference, p0, p1."""
    names = ("ref", "p0", "p1")
    return [float_from_uint8(read_image(FIXTURES / f"lpips_ex_{name}.png")) for name in names]
