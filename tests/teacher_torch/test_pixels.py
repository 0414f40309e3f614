import numpy as np
import pytest
import torch

from teacher_torch.pixels import to_model_range, to_uint8


def test_conversion_of_pixels():
    images = np.array([[[[0, 127, 255]]]], np.uint8)
    tensor = to_model_range(images)
    assert tensor.shape == (1, 3, 1, 1)
    assert tensor.flatten().tolist() == pytest.approx([-1.0, 127 / 127.5 - 1, 1.0])
    np.testing.assert_array_equal(to_uint8(tensor), images)
    beyond = to_uint8(torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1))
    assert beyond.flatten().tolist() == [0, 128, 255]
