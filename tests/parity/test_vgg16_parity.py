"""The bundled VGG16 gives the same features to the pre-training in torch and the losses in JAX."""

import jax.numpy as jnp
import numpy as np
import torch

from student_jax.nets.vgg_weights import bundled_vgg16
from teacher_torch.mini.perceptual import VGG16


def test_features_of_both_worlds():
    images = np.random.default_rng(0).random((2, 40, 56, 3), np.float32)
    in_torch = VGG16()(torch.from_numpy(images).permute(0, 3, 1, 2))
    in_jax = bundled_vgg16()(jnp.asarray(images))
    assert in_torch.keys() == in_jax.keys()
    for name, features in in_torch.items():
        expected = features.permute(0, 2, 3, 1).numpy()
        # float32 sums in another order.
        np.testing.assert_allclose(
            in_jax[name], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )
