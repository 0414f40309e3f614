"""What is taken as a picture, and what is returned as one."""

import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from student_jax.inference.pictures import as_kind, float_pixels
from triplets import InputError

PIXELS = (np.arange(2 * 3 * 3) / 20).reshape(2, 3, 3).astype(np.float32)


class Tensor:
    """As much of a torch tensor as is needed: students do without torch, and so do their tests."""

    def __init__(self, array):
        self.array, self.is_on_device = array, True

    def detach(self):
        return self

    def cpu(self):
        self.is_on_device = False
        return self

    def numpy(self):
        assert not self.is_on_device
        return self.array


@pytest.fixture
def torch(monkeypatch):
    module = types.ModuleType("torch")
    module.Tensor, module.from_numpy = Tensor, Tensor
    monkeypatch.setitem(sys.modules, "torch", module)


def test_torch_has_its_channels_first(torch):
    for pixels in (PIXELS, np.stack([PIXELS, 1 - PIXELS])):
        tensor = as_kind(pixels, "torch")
        assert tensor.array.shape[-3] == 3 and tensor.array.flags.c_contiguous
        np.testing.assert_array_equal(float_pixels("content", tensor), pixels)
    with pytest.raises(InputError, match="shape"):
        float_pixels("content", Tensor(np.zeros(3, np.float32)))


def test_torch_is_never_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with pytest.raises(InputError, match="import torch first"):
        as_kind(PIXELS, "torch")


def test_the_other_kinds():
    assert as_kind(PIXELS, "numpy") is PIXELS
    assert isinstance(as_kind(PIXELS, "jax"), jax.Array)
    image = as_kind(PIXELS, "pil")
    assert isinstance(image, Image.Image) and image.size == (3, 2)
    np.testing.assert_allclose(float_pixels("content", image), PIXELS, atol=0.5 / 255)
    assert len(as_kind(np.stack([PIXELS] * 2), "pil")) == 2
    with pytest.raises(InputError, match="expected one of numpy, pil, jax, torch"):
        as_kind(PIXELS, "tensorflow")
