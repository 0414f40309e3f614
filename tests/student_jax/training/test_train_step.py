"""One step of the optimiser, its schedule, and what of it is spread over devices."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from losses import L1, L2, PERCEPTUAL, DistillationWeights, sameness_loss
from student_jax.nets.vgg_weights import bundled_vgg16
from student_jax.training.objective import Pictures, make_objective, terms, weights_of
from student_jax.training.sharding import MIN_SHARDED_SIZE, placed
from student_jax.training.train_state import (
    create_train_state,
    learning_rate_schedule,
    make_optimiser,
    trained,
)
from student_jax.training.train_step import train_step, unit_range
from triplets import InputError


class Blend(nnx.Module):
    """Stands for the student: the content by a learnt matrix, and a learnt part of the style."""

    def __init__(self, rngs):
        self.mix = nnx.Linear(3, 3, rngs=rngs)
        self.share = nnx.Param(jnp.array(0.3))

    def learning_group(self, path):
        return "normal"

    def __call__(self, content, style, train=False, rngs=None):
        return self.mix(content) + self.share[...] * style


def take_step(config, batch):
    model = Blend(nnx.Rngs(0))
    graphdef, weights = nnx.split(model)
    tx = make_optimiser(config, model.learning_group)
    objective, features = make_objective(L1, None, "sum")
    step = partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=config)
    return jax.jit(step)(create_train_state(weights, model.learning_group, tx), batch, features)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        name: rng.integers(0, 256, (8, 4, 4, 3), np.uint8)
        for name in ("content", "style", "stylised")
    }


def test_parts_of_a_batch_give_the_step_of_the_whole(train_config, batch):
    config = dataclasses.replace(train_config, batch_size=8, warmup_steps=0)
    whole, terms = take_step(config, batch)
    for accumulate in (2, 4):
        state, partial_terms = take_step(dataclasses.replace(config, accumulate=accumulate), batch)
        for name, value in terms.items():
            # Sums in another order: float32 rounding.
            assert partial_terms[name].item() == pytest.approx(value.item(), rel=1e-5)
        for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)


def test_average_of_the_parameters_by_hand(train_config, batch):
    config = dataclasses.replace(train_config, batch_size=8, warmup_steps=0)
    before = nnx.state(Blend(nnx.Rngs(0)))["share"][...]
    state, _ = take_step(config, batch)
    after = state.params["share"][...]
    assert after != before
    # At the first step the average keeps 1 / 11 of the initial value.
    expected = before / 11 + after * 10 / 11
    assert state.ema_params["share"][...].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("cosine", {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 100: 0.0}),
        ("step", {0: 0.0, 5: 0.5, 10: 1.0, 66: 1.0, 68: 0.1, 99: 0.1}),
        ("constant", {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
    ],
)
def test_schedules_by_hand(train_config, schedule, expected):
    rate = learning_rate_schedule(
        dataclasses.replace(
            train_config, steps=100, warmup_steps=10, learning_rate=2e-3, schedule=schedule
        )
    )
    for step, share in expected.items():
        assert float(rate(step)) == pytest.approx(2e-3 * share, rel=1e-5, abs=1e-9)


def group(path):
    return {"stem": "frozen", "backbone": "slow"}.get(path[0], "normal")


def test_what_is_frozen_is_not_trained():
    stem = nnx.Linear(1, 1, use_bias=False, rngs=nnx.Rngs(0))
    model = nnx.Dict(stem=stem, backbone=nnx.Linear(1, 2, rngs=nnx.Rngs(0)))
    _, params, rest = nnx.split(model, trained(group), ...)
    assert {path for path, _ in nnx.to_flat_state(rest)} == {("stem", "kernel")}
    assert {path[0] for path, _ in nnx.to_flat_state(params)} == {"backbone"}


def test_the_slow_group_learns_slower(train_config):
    config = dataclasses.replace(train_config, weight_decay=0.0, warmup_steps=0, slow_rate=0.1)
    tx = make_optimiser(config, group)
    params = {"backbone": {"w": jnp.ones(3)}, "decoder": {"w": jnp.ones(3)}}
    # Adam's first step is the learning rate, whatever the size of the gradient.
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    ratio = updates["backbone"]["w"] / updates["decoder"]["w"]
    np.testing.assert_allclose(ratio, 0.1, rtol=1e-6)
    assert optax.tree.norm(updates["decoder"]) == pytest.approx(3e-3 * 3**0.5, rel=1e-3)


def test_large_arrays_are_split_along_their_longest_axis():
    mesh = AbstractMesh((2, 4), ("data", "fsdp"))
    side = int(MIN_SHARDED_SIZE**0.5)

    def spec(*shape):
        return placed(jax.ShapeDtypeStruct(shape, jnp.float32), mesh).sharding.spec

    assert spec(side, 2 * side) == PartitionSpec(None, "fsdp")
    assert spec(2 * side, side) == PartitionSpec("fsdp")
    assert spec(4 * side + 1, side) == PartitionSpec(None, "fsdp")  # 4 devices cannot share it
    assert spec(side, side // 2) == PartitionSpec()  # small


STYLE_GRAM = DistillationWeights(pixel=1.0, gram=0.0, style_gram=0.5)


@pytest.mark.parametrize(
    ("weights", "name"), [(L2, "gram"), (PERCEPTUAL, "perceptual"), (STYLE_GRAM, "style_gram")]
)
def test_objectives_compare_features(weights, name):
    images = Pictures(*jax.random.uniform(jax.random.key(0), (4, 1, 16, 16, 3)))
    whole, parameters = make_objective(weights, bundled_vgg16(), "sum")
    part, _ = make_objective(weights, bundled_vgg16(), "sum", features_crop=8)
    large, _ = make_objective(weights, bundled_vgg16(), "sum", features_crop=999)
    key = jax.random.key(1)
    loss, terms = whole(parameters, images, key)
    expected = weights.pixel * terms["pixel"] + getattr(weights, name) * terms[name]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert large(parameters, images, key)[1][name] == terms[name]
    cropped = part(parameters, images, key)[1]
    assert cropped["pixel"] == terms["pixel"] and cropped[name] != terms[name]
    assert part(parameters, images, jax.random.key(2))[1][name] != cropped[name]


def test_terms_of_a_loss_can_be_left_out():
    assert terms("L2") == ["pixel", "gram"]
    assert weights_of("L2") == L2
    assert weights_of("L2", ["gram"]) == DistillationWeights(pixel=0.5, gram=0.0)
    for without in (["gram", "pixel"], ["texture"]):
        with pytest.raises(InputError, match="L2 consists of pixel, gram; expected some of them"):
            weights_of("L2", without)


def test_sameness_compares_each_content_in_its_own_and_its_neighbours_style(train_config, batch):
    """Of `Blend`, which adds a share of the style: its marks are known."""
    without = tuple({*terms("paint")} - {"low_band", "sameness"})
    config = dataclasses.replace(train_config, batch_size=8, loss="paint", without=without)
    batch = {name: jnp.asarray(x.repeat(4, 1).repeat(4, 2)) for name, x in batch.items()}
    model = Blend(nnx.Rngs(0))
    graphdef, weights = nnx.split(model)
    tx = make_optimiser(config, model.learning_group)
    objective, features = make_objective(weights_of("paint", without), None, "sum")
    state = create_train_state(weights, model.learning_group, tx)
    step = partial(train_step, graphdef=graphdef, objective=objective, tx=tx, config=config)
    _, figures = jax.jit(step)(state, batch, features)
    content, style = (unit_range(batch[name]) for name in ("content", "style"))
    own, other = (model(content, x) for x in (style, jnp.roll(style, 1, axis=0)))
    expected = sameness_loss(own, other, content)
    # float32, in two programs.
    assert figures["sameness"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert expected < 0.99
