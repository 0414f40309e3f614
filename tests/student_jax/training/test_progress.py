"""Following a run."""

import jax
import jax.numpy as jnp
import pytest

from student_jax.nets.flops import count_flops
from student_jax.training.metrics import MetricWriters, WeightsAndBiases
from student_jax.training.progress import Progress, TrainingError, peak_flops
from triplets import InputError


class Recorder:
    def __init__(self):
        self.lines = []

    def scalars(self, step, values):
        self.lines.append((step, values))

    def picture(self, step, name, image):
        self.lines.append((step, name))

    def close(self):
        self.lines.append("closed")


@pytest.fixture
def recorder():
    return Recorder()


def watch(train_config, recorder, **options):
    writers = MetricWriters([recorder])
    return Progress(train_config, 0, writers, lambda step: 0.5, visible=False, **options)


def test_figures_of_a_step_come_with_the_next(train_config, recorder):
    with watch(train_config, recorder, flops=10.0, peak=1e9) as progress:
        progress.dispatched(1, ["a"], {"loss": jnp.array(3.0)})
        assert recorder.lines == []
        progress.dispatched(2, ["b"], {"loss": jnp.array(2.0)})
        # The first step is not timed: it compiles.
        assert recorder.lines == [(1, {"loss": 3.0, "learning_rate": 0.5})]
        progress.settle()
    step, values = recorder.lines[-1]
    assert step == 2 and values["loss"] == 2.0
    assert values["images_per_s"] == pytest.approx(train_config.batch_size / progress.seconds)
    assert values["mfu"] == pytest.approx(10.0 / progress.seconds / 1e9)
    assert progress.terms == {"loss": 2.0}


def test_pauses_are_not_timed(train_config, recorder, monkeypatch):
    now = iter([10.0, 11.0, 100.0, 102.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    with watch(train_config, recorder) as progress:
        for step in (1, 2):
            progress.dispatched(step, [], {"loss": jnp.zeros(())})
        with progress.paused():
            assert (progress.steps, progress.seconds) == (1, 1.0)
        progress.dispatched(3, [], {"loss": jnp.zeros(())})
        progress.settle()
        assert (progress.steps, progress.seconds) == (2, 3.0)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_no_number_is_told_with_its_batch(train_config, recorder, bad):
    with watch(train_config, recorder) as progress:
        progress.dispatched(7, ["dump[3]", "dump[9]"], {"loss": jnp.array(bad)})
        with pytest.raises(TrainingError, match=rf"step 7 gave loss {bad} .*dump\[3\], dump\[9\]"):
            progress.settle()


def test_peak_is_known_or_given():
    assert peak_flops(None) is None  # of a CPU nothing is known
    assert peak_flops(1.5) == 1.5e12 * jax.device_count()


def test_weights_and_biases_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        WeightsAndBiases(tmp_path, "styles", {})


def test_flops_by_hand():
    x, y = jnp.ones((2, 3)), jnp.ones((3, 5))
    product = 2 * 2 * 3 * 5

    def flops(function, *args):
        return count_flops(jax.make_jaxpr(function)(*args))

    assert flops(jnp.matmul, x, y) == product
    assert flops(jax.jit(lambda x, y: jnp.tanh(x @ y) + 1), x, y) == product
    assert flops(lambda x, y: jax.lax.map(lambda _: x @ y, jnp.arange(7)), x, y) == 7 * product
    # Both gradients of a product are products of the same size.
    assert flops(jax.grad(lambda x, y: (x @ y).sum(), (0, 1)), x, y) == 3 * product
    images, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 6))

    def convolve(images, kernel, **options):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    assert flops(convolve, images, kernel) == 2 * 64 * 9 * 4 * 6
    grouped = lambda *args: convolve(*args, feature_group_count=2)  # noqa: E731
    assert flops(grouped, images, kernel[:, :, :2]) == 2 * 64 * 9 * 2 * 6
