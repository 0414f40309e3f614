"""What is the modulated student's alone: its colours, its noise, what the style changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import build, pictures
from flax import nnx
from test_students import TINY as ALL

from student_jax.inference.stylist import Stylist
from student_jax.nets import imagenet
from student_jax.nets.convolution import from_cells, to_cells
from student_jax.nets.statistics import ColourStatistics, colour_moments, colour_statistics
from student_jax.students.modulated.model import (
    StyleMemory,
    _colour_map,
    _even_grid,
    _mixed,
    map_colours,
)
from student_jax.students.modulated.modulation import (
    NOISE_MAPS,
    NOISE_SIDES,
    NoiseGain,
    StyleFilter,
    StyleSwap,
    instance_norm,
    instance_norm_of_cells,
    noise_cells,
)
from student_jax.weights.folder import open_student
from triplets import float_from_uint8, load_images, open_source
from triplets.bundled import SAMPLES

TINY = ALL["modulated"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": (8, 8)}, "widths is .*expected three"),
        ({"widths": (8, 8, 0)}, "widths is"),
        ({"style_widths": ()}, "style_widths is"),
        ({"num_blocks": 0}, "num_blocks is 0"),
    ],
)
def test_config_names_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_white_noise_gets_the_colours_of_the_style():
    mixing = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.2], [-0.3, 0.2, 0.6]], np.float32)
    style = np.asarray(pictures(0, 1, 64, 64)) @ mixing + 0.2
    white = np.random.default_rng(1).standard_normal((1, 4096, 3)).astype(np.float32)
    white = (white - white.mean(1)) / white.std(1)
    values, vectors = np.linalg.eigh(np.cov(white[0].T, bias=True))
    white = (white @ vectors / np.sqrt(values)).reshape(1, 64, 64, 3)

    colours = colour_statistics(colour_moments(jnp.asarray(style), 16))
    result = map_colours(jnp.asarray(white), *_colour_map(colours))
    result = np.asarray(imagenet.normalise(result)).reshape(-1, 3)

    flat = style.reshape(-1, 3)
    np.testing.assert_allclose(result.mean(0), flat.mean(0), atol=1e-4)
    # `colour_statistics` adds 4e-4 to variances, which lowers the correlations a little.
    np.testing.assert_allclose(
        np.cov(result.T, bias=True), np.cov(flat.T, bias=True), atol=1e-3, rtol=0.02
    )


def test_instance_norm_by_hand_and_without_what_is_hidden():
    x = jnp.array([0.0, 2.0, 0.0, 2.0, 100.0, 7.0]).reshape(1, 1, 6, 1)
    hidden = jnp.array([False] * 4 + [True] * 2).reshape(1, 1, 6)
    expected = np.array([-1, 1, -1, 1, 99, 6]).reshape(1, 1, 6, 1) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(instance_norm(x, hidden), expected, rtol=1e-6)
    np.testing.assert_allclose(instance_norm(x[:, :, :4]), expected[:, :, :4], rtol=1e-6)


def test_cells_hold_2_x_2_positions():
    x = jnp.arange(4 * 6 * 3).reshape(1, 4, 6, 3) * 1.0
    cells = to_cells(x)
    assert cells.shape == (1, 2, 3, 12)
    np.testing.assert_array_equal(cells[0, 1, 2], x[0, 2:4, 4:6].reshape(-1))
    np.testing.assert_array_equal(from_cells(cells), x)


def test_the_noise_of_a_position_is_always_the_same_and_does_not_come_again():
    small, large = noise_cells(5, 7), noise_cells(70, 140)
    np.testing.assert_array_equal(small, large[:, :5, :7])
    values = np.asarray(large[0])
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    for side in NOISE_SIDES:
        # One table is the same there and the other is not: half the variance is shared.
        again = (values[:, :-side] * values[:, side:]).mean()
        assert again == pytest.approx(0.5, abs=0.03)


def test_the_filter_is_a_convolution_with_the_style_s_kernels():
    layer = StyleFilter(5, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x, code = (
        pictures(0, 2, 6, 7)[..., :1].repeat(4, -1),
        jax.random.normal(jax.random.key(1), (2, 5)),
    )
    kernels = np.asarray(layer.map(code)).reshape(2, 3, 3, 4)
    padded = np.pad(np.asarray(x), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    expected = np.array(x)
    for b, i, j in np.ndindex(2, 6, 7):
        expected[b, i, j] += (kernels[b] * padded[b, i : i + 3, j : j + 3]).sum((0, 1))
    np.testing.assert_allclose(layer(x, code), expected, atol=1e-5)  # sums in another order


def test_cells_are_normalised_as_their_positions():
    x = jax.random.normal(jax.random.key(0), (2, 6, 8, 3)) + jnp.arange(3.0)
    hidden = jnp.zeros((2, 3, 4), bool).at[0, 1:].set(True)
    for seen, of_positions in ((None, None), (hidden, hidden.repeat(2, 1).repeat(2, 2))):
        found = from_cells(instance_norm_of_cells(to_cells(x), seen))
        # The same sums in another order.
        np.testing.assert_allclose(found, instance_norm(x, of_positions), rtol=1e-4, atol=1e-5)


def test_every_style_mixes_the_noise_in_its_own_way():
    layer = NoiseGain(5, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    noise = from_cells(noise_cells(2, 3))
    code, scale = (jax.random.normal(jax.random.key(1), shape) for shape in ((2, 5), (2, 1, 1, 3)))
    gains = np.asarray(layer.map(code)).reshape(2, NOISE_MAPS, 3)
    expected = np.einsum("hwk,bkc->bhwc", np.asarray(noise[0]), gains) * np.asarray(scale)
    np.testing.assert_allclose(layer(noise, code, scale), expected, atol=1e-6)


def test_the_swap_takes_what_looks_most_alike():
    swap = StyleSwap(5, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    swap.sharpness.set_value(jnp.asarray(9.0))  # e^9 times a cosine: no other has a share
    style = jax.random.normal(jax.random.key(0), (1, 6, 8))
    order = jnp.array([3, 0, 5, 2])
    content = 2.5 * style[:, order].reshape(1, 2, 2, 8)  # of any contrast
    found = swap.swapped(content, swap.keys(style), style)
    np.testing.assert_allclose(found.reshape(1, 4, 8), style[:, order], atol=1e-5)


def test_the_swap_mixes_by_the_softmax_of_cosines():
    swap = StyleSwap(5, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    style = jax.random.normal(jax.random.key(0), (2, 7, 8))
    content = jax.random.normal(jax.random.key(1), (2, 3, 2, 8))
    project = np.asarray(swap.compare.kernel[...])
    query, key = (np.asarray(x).reshape(2, -1, 8) @ project for x in (content, style))
    query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    scores = np.exp(np.exp(3.0) * query @ key.swapaxes(1, 2))
    expected = scores / scores.sum(-1, keepdims=True) @ np.asarray(style)
    found = swap.swapped(content, swap.keys(style), style)
    # Exponentials of sums in another order.
    np.testing.assert_allclose(found.reshape(2, 6, 8), expected, rtol=1e-4, atol=1e-5)


def test_the_gate_is_a_share_of_each_channel():
    swap = StyleSwap(5, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    swap.gate.kernel.set_value(jnp.zeros((5, 2)))
    swap.gate.bias.set_value(jnp.log(jnp.array([3.0, 1 / 3])))  # shares of 3/4 and 1/4
    x, swapped, code = jnp.zeros((1, 1, 1, 2)), jnp.ones((1, 1, 1, 2)), jnp.ones((1, 5))
    np.testing.assert_allclose(swap(x, swapped, code).ravel(), [0.75, 0.25], rtol=1e-6)


def test_the_cells_of_a_style_are_kept_on_an_even_grid():
    grid = jnp.arange(7 * 3.0).reshape(1, 7, 3, 1)
    # Points at 7/4 and 21/4 of 7 rows, at 3/4 and 9/4 of 3 columns.
    np.testing.assert_array_equal(_even_grid(grid, 2).ravel(), [3, 5, 15, 17])
    # At 1/2, 3/2 and 5/2 of 3 columns, and of 7 rows at 7/6, 21/6 and 35/6.
    np.testing.assert_array_equal(_even_grid(grid, 3).reshape(3, 3), grid[0, [1, 3, 5], :, 0])


def test_mixed_styles_give_cells_in_their_shares():
    def memory(value):
        colours = ColourStatistics(*jnp.full((4, 1, 3), value))
        return StyleMemory(
            colours, jnp.full((1, 4), value), *(jnp.full((1, 100, n), value) for n in (2, 3))
        )

    memories, weights = [memory(0.0), memory(1.0), memory(3.0)], jnp.array([0.25, 0.6, 0.15])
    mixed = _mixed(memories, weights)
    np.testing.assert_allclose(mixed.features, jnp.full((1, 4), 0.6 + 0.45), rtol=1e-6)
    counts = [int((mixed.values[0, :, 0] == value).sum()) for value in (0.0, 1.0, 3.0)]
    np.testing.assert_allclose(counts, [25, 60, 15], atol=3)  # as even as the sequence is
    np.testing.assert_array_equal(mixed.keys[0, :, 0], mixed.values[0, :, 0])
    alone = _mixed(memories, jnp.array([0.0, 1.0, 0.0]))
    for found, expected in zip(jax.tree.leaves(alone), jax.tree.leaves(memories[1]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_every_parameter_learns():
    model = build(TINY)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    content, style = pictures(0, 2, 32, 32), pictures(1, 2, 32, 32)

    @jax.jit
    @jax.grad
    def gradient(params):
        prediction = nnx.merge(graphdef, params, rest)(content, style, train=True)
        return jnp.mean((prediction - style) ** 2)

    dead = [
        jax.tree_util.keystr(path)
        for path, x in jax.tree.leaves_with_path(gradient(params))
        # The normalisation that follows takes away what all positions share.
        if not jnp.abs(x).max() > 0 and "conv1" not in jax.tree_util.keystr(path)
    ]
    assert dead == []


def test_the_contrast_of_the_content_does_not_reach_the_result():
    """Its features are normalised; what remains comes from the nonlinearities before that."""
    model = open_student("modulated")
    photos = load_images(open_source(str(SAMPLES / "content")), 64, limit=2)[0].images
    content, other = (float_from_uint8(x)[None] for x in photos)
    predict = jax.jit(lambda content: model(content, other))
    bright, pale = predict(content), predict(0.4 + 0.2 * content)
    assert jnp.abs(pale - bright).mean() < 0.5 * jnp.abs(predict(other) - bright).mean()


def test_tiles_give_the_picture_as_a_whole():
    model = build(TINY)
    content, style = np.asarray(pictures(3, 256, 640)), np.asarray(pictures(4, 48, 48))
    whole = Stylist(model)
    encoded = whole.encode_style(style)
    plan = whole.plan(256, 640, encoded)
    assert plan.tile is None
    tiled = plan._replace(tile=(256, 256))
    # The same sums over other programs; statistics are of the same tokens.
    np.testing.assert_allclose(
        whole(content, encoded, plan=tiled), whole(content, encoded, plan=plan), atol=1e-4
    )
