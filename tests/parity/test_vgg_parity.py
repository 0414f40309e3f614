"""VGG19's features, Gram matrices and the distillation losses against PyTorch's."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from recipe import recipe_weights

from losses import L1, L2, L3, distillation_loss, gram_loss, gram_matrix
from student_jax import convert

FIXTURE = Path(__file__).parent / "fixtures" / "vgg19_losses.npz"
LAYERS = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
# float32 sums in another order; see the fixture's own float32 error of about 1e-6.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def fixture():
    return np.load(FIXTURE)


@pytest.fixture(scope="module")
def pictures(fixture):
    return tuple(jnp.asarray(fixture[name][None] / np.float32(255)) for name in ("x_u8", "y_u8"))


@pytest.fixture(scope="module")
def features(fixture, pictures):
    weights = {
        name: array * np.sqrt(2, dtype=np.float32) if array.ndim == 4 else array
        for name, array in recipe_weights(fixture).items()
    }
    vgg = convert.vgg19_from_torch(weights)
    return tuple(vgg(picture) for picture in pictures)


@pytest.mark.parametrize("layer", LAYERS)
def test_features_and_gram_matrices(fixture, features, layer):
    x = features[0][layer]
    stride = fixture[f"{layer}_channel_stride"]
    expected = fixture[layer].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(
        x[..., ::stride], expected, rtol=TOLERANCE, atol=TOLERANCE * expected.max()
    )
    expected = fixture[f"gram_{layer}"]
    np.testing.assert_allclose(
        gram_matrix(x)[:, ::stride, ::stride], expected, rtol=TOLERANCE, atol=1e-6
    )


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("reduction", "name"), [("sum", "sq_frobenius"), ("mean", "mse")])
def test_gram_losses(fixture, features, layer, reduction, name):
    x, y = ({layer: f[layer]} for f in features)
    assert gram_loss(x, y, reduction).item() == pytest.approx(
        fixture[f"gram_{name}_{layer}"].item(), rel=TOLERANCE
    )


@pytest.mark.parametrize(("weights", "name"), [(L1, "L1"), (L2, "L2"), (L3, "L3")])
def test_distillation_losses(fixture, pictures, features, weights, name):
    loss, terms = distillation_loss(*pictures, *features, weights)
    assert loss.item() == pytest.approx(fixture[name].item(), rel=TOLERANCE)
    assert terms["pixel"].item() == pytest.approx(fixture["pixel_mse"].item(), rel=TOLERANCE)
