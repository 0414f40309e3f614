"""Types are checked in tests, as PEP 484 means them."""

import numpy as np
import pytest
from beartype.roar import BeartypeException
from jaxtyping import TypeCheckError
from typechecker import typechecker

from triplets import centre_crop
from triplets.sheet import contact_sheet


@typechecker
def half(number: float) -> float:
    return number / 2


def test_an_int_will_do_for_a_float():
    assert half(3) == 1.5
    with pytest.raises(BeartypeException):
        half("3")
    with pytest.raises(BeartypeException):
        half(3j)


def test_the_packages_are_checked():
    for unfit in (np.zeros((2, 2, 3)), np.zeros((2, 2), np.uint8)):
        with pytest.raises(TypeCheckError):
            centre_crop(unfit)
    with pytest.raises(TypeCheckError):
        contact_sheet([[np.zeros((2, 2, 3), np.uint8)]], captions=[1])
