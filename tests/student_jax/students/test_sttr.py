"""What is STTR's alone: its authors' masks, batch norm, and what of it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import build, jitted, pictures
from flax import nnx
from test_students import TINY as ALL

from student_jax import STTR
from student_jax.nets.imagenet import MEAN

TINY = ALL["sttr"]


@pytest.fixture(scope="module")
def model():
    return build(TINY)


def test_config_names_widths_that_are_no_resnet50():
    for widths in ((), (8,), (256, 1024)):
        with pytest.raises(ValueError, match="a resnet50 has the first of"):
            dataclasses.replace(TINY, style_widths=widths)


def test_the_first_prediction_is_near_grey():
    content, style = pictures(0, 2, 64, 64), 0.25 + 0.5 * pictures(1, 2, 64, 64) ** 2
    prediction = jitted(nnx.jit(lambda: STTR(TINY, rngs=nnx.Rngs(0)))())(content, style)
    # The mean of ImageNet; the small last weights leave faint traces of the content.
    np.testing.assert_allclose(prediction, np.broadcast_to(MEAN, prediction.shape), atol=0.25)


def test_what_is_under_padding_does_not_matter(model):
    predict = jitted(model)
    arguments = {
        "content": pictures(0, 1, 32, 48),
        "style": pictures(1, 1, 64, 48),
        "content_mask": jnp.zeros((1, 32, 48), bool).at[:, :, 16:].set(True),
        "style_mask": jnp.zeros((1, 64, 48), bool).at[:, 32:].set(True),
    }
    white = {
        name: jnp.where(arguments[f"{name}_mask"][..., None], 1.0, arguments[name])
        for name in ("content", "style")
    }
    np.testing.assert_array_equal(predict(**arguments | white), predict(**arguments))


def test_padding_a_style_changes_nothing_far_from_it(model):
    """Keys under padding are hidden, and positions do not count it."""
    encode = jax.jit(lambda *args: model.encode_style(*args))
    style = pictures(1, 1, 64, 64)
    mask = jnp.zeros((1, 64, 128), bool).at[:, :, 64:].set(True)
    expected = encode(style)
    padded = encode(jnp.pad(style, ((0, 0), (0, 0), (0, 64), (0, 0))), mask)
    grid = padded.position.reshape(1, 8, 16, -1)[:, :, :8]
    np.testing.assert_array_equal(grid, expected.position.reshape(1, 8, 8, -1))
    assert padded.padding.reshape(8, 16)[:, 8:].all()


def test_masks_of_numpy_are_taken(model):
    images, mask = pictures(0, 1, 32, 32), np.zeros((1, 32, 32), bool)
    expected = jitted(model)(images, images, jnp.asarray(mask), jnp.asarray(mask))
    arrays = (np.asarray(images), np.asarray(images), mask, mask)
    np.testing.assert_array_equal(jitted(model)(*arrays), expected)


def test_training_uses_and_updates_batch_statistics():
    model = build(dataclasses.replace(TINY, dropout=0.0))
    content, style = pictures(0, 2, 32, 32), pictures(1, 2, 32, 32)
    graphdef, params, stats, frozen = nnx.split(
        model, nnx.Param, lambda path, variable: type(variable) is nnx.BatchStat, ...
    )

    @jax.jit
    def train(stats):
        model = nnx.merge(graphdef, params, stats, frozen)
        prediction = model(content, style, train=True)
        return prediction, nnx.state(model, lambda path, variable: path in paths)

    paths = {path for path, _ in nnx.to_flat_state(stats)}
    predicted = jitted(model)(content, style)
    trained, updated = train(stats)
    assert jnp.abs(trained - predicted).max() > 1e-3
    for before, after in zip(jax.tree.leaves(stats), jax.tree.leaves(updated), strict=True):
        assert jnp.abs(after - before).max() > 0
    for _ in range(150):
        _, updated = train(updated)
    settled = jitted(nnx.merge(graphdef, params, updated, frozen))(content, style)
    # After 150 steps on the same batch, 0.9^150 = 1e-7 of the initial statistics is left.
    np.testing.assert_allclose(settled, trained, atol=2e-4 * jnp.abs(trained).max())


def test_the_resnets_learn_slowly_and_keep_their_first_layers(model):
    groups = {}
    for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        groups.setdefault(model.learning_group(path), set()).add(path[:3])
    both = [f"{name}_backbone" for name in ("content", "style")]
    assert groups["frozen"] == {(name, "stages", i) for name in both for i in (0, 1)}
    assert groups["slow"] == {("style_backbone", "stages", 2)}
    assert not {path[0] for path in groups["normal"]} & set(both)
