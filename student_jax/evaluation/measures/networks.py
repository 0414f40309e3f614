"""Measures by networks: LPIPS, Gram distance, and the content distance of StyleID's protocol."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float
from safetensors.numpy import load_file

from losses import gram_matrix
from student_jax.evaluation.measures.pixels import Picture
from student_jax.nets.vgg import VGG16, VGG19
from student_jax.nets.vgg_weights import bundled_vgg16
from triplets.bundled import WEIGHTS

CFSD_LAYER = "relu3_1"
CFSD_ROWS = 64  # positions whose similarities are held at once: few, to stay in a CPU's cache
STYLES_KEPT = 128  # whose Gram matrices are kept, 1.4 MB each


class LPIPS:
    """LPIPS v0.1 `alex` (Zhang et al., CVPR 2018, eq. 1): AlexNet features, learned weights.

    Call: two float [h w 3] in [0, 1], sides at least 64 -> distance, 0 for equal pictures.
    """

    LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # index, stride, padding
    POOL_BEFORE = (3, 6)
    # Not ImageNet's statistics, which the network was trained with, but those of LPIPS itself.
    SHIFT = np.array([[[[-0.030, -0.088, -0.188]]]], np.float32)
    SCALE = np.array([[[[0.458, 0.448, 0.450]]]], np.float32)

    def __init__(self, weights: Path = WEIGHTS / "lpips_alex.fp16.safetensors"):
        self._weights = {k: v.astype(np.float32) for k, v in load_file(weights).items()}
        self._distance = jax.jit(self._distances)

    def __call__(self, a: Picture, b: Picture) -> float:
        if min(a.shape[:2]) < 64:
            raise ValueError(
                f"pictures of {a.shape[1]} x {a.shape[0]} px; LPIPS needs 64 px a side."
            )
        return float(self._distance(self._weights, np.stack([a, b]).astype(np.float32)))

    @classmethod
    def _distances(
        cls, weights: Mapping[str, Array], images: Float[Array, "2 h w 3"]
    ) -> Float[Array, ""]:
        x = (2 * images - 1 - cls.SHIFT) / cls.SCALE
        total = jnp.zeros(())
        for i, (index, stride, padding) in enumerate(cls.LAYERS):
            if index in cls.POOL_BEFORE:
                x = nnx.max_pool(x, (3, 3), strides=(2, 2))
            x = lax.conv_general_dilated(
                x,
                weights[f"features.{index}.weight"],
                (stride, stride),
                ((padding, padding), (padding, padding)),
                dimension_numbers=("NHWC", "OIHW", "NHWC"),
            )
            x = jax.nn.relu(x + weights[f"features.{index}.bias"][None, None, None])
            unit = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)
            squared = (unit[0] - unit[1]) ** 2
            total += (squared @ weights[f"lin{i}.weight"]).mean()
        return total


class GramDistance:
    """How far the textures of a picture are from a style's, by the bundled VGG16.

    Call: a picture and a style, float [h w 3] in [0, 1] -> the mean over relu1_1, relu2_1, relu3_1
    and relu4_1 of ||G(picture) - G(style)|| / ||G(style)||, Frobenius norms of the Gram matrices
    (Gatys et al., 2016, eq. 3): 0 for the style itself. Not symmetric; sizes may differ.
    """

    def __init__(self):
        graphdef, self._state = nnx.split(bundled_vgg16())

        def grams(state, image):
            return jax.tree.map(gram_matrix, nnx.merge(graphdef, state)(image[None]))

        self._grams = jax.jit(grams)
        self._of_style: dict[bytes, dict[str, Array]] = {}

    def __call__(
        self, image: Float[np.ndarray, "h w 3"], style: Float[np.ndarray, "h2 w2 3"]
    ) -> float:
        own, target = self._grams(self._state, image.astype(np.float32)), self._target(style)
        norms = [jnp.linalg.norm(own[k] - target[k]) / jnp.linalg.norm(target[k]) for k in own]
        return float(np.mean(norms))

    def _target(self, style: Float[np.ndarray, "h w 3"]) -> dict[str, Array]:
        """Gram matrices of a style, computed once for all the results that it is compared with."""
        pixels = np.ascontiguousarray(style, np.float32)
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        if key not in self._of_style:
            if len(self._of_style) == STYLES_KEPT:
                del self._of_style[next(iter(self._of_style))]
            self._of_style[key] = self._grams(self._state, pixels)
        return self._of_style[key]


class ContentStructureDistance:
    """CFSD, the content feature structural distance of StyleID's protocol (Chung et al., 2024).

    Call: a stylised picture and its content, float [h w 3] in [0, 1] -> the Kullback-Leibler
    divergence of the softmax over all positions of the similarities of relu3_1 features (products
    over channels, divided by c^2), content against stylised, summed over positions: the authors'
    program sums where their paper's equation divides by h w. 0 for equal pictures.

    Their figures are by VGG19, whose weights are not bundled; `vgg16` gives figures that compare
    only with each other.
    """

    def __init__(self, network: VGG16 | VGG19):
        graphdef, self._state = nnx.split(network)

        def divergence(state, stylised, content):
            images = jnp.stack([stylised, content])
            features = nnx.merge(graphdef, state)(images, (CFSD_LAYER,))[CFSD_LAYER]
            return _structure_divergence(*features)

        self._divergence = jax.jit(divergence)

    def __call__(self, stylised: Picture, content: Picture) -> float:
        pictures = (x.astype(np.float32) for x in (stylised, content))
        return float(self._divergence(self._state, *pictures))


@partial(jax.jit, static_argnames="rows")
def _structure_divergence(
    stylised: Float[Array, "h w c"], content: Float[Array, "h w c"], rows: int = CFSD_ROWS
) -> Float[Array, ""]:
    c = stylised.shape[-1]
    q, p = (x.reshape(-1, c) / c for x in (stylised, content))

    def of_position(pair: tuple[Float[Array, " c"], Float[Array, " c"]]) -> Float[Array, ""]:
        similarity = p @ pair[1]
        difference = similarity - q @ pair[0]
        weights = jax.nn.softmax(similarity)
        # KL = log E[exp(-d)] of differences d about their mean; nearly uniform distributions lose
        # their divergence to rounding when two logarithms of sums are subtracted instead.
        centred = difference - weights @ difference
        return jnp.log1p(weights @ jnp.expm1(-centred))

    return jnp.sum(lax.map(of_position, (q, p), batch_size=rows))
