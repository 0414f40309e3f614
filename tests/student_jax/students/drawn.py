"""Pictures and models of random numbers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from student_jax.student import build_student


def pictures(seed, *shape):
    return jax.random.uniform(jax.random.key(seed), (*shape, 3))


def build(config, **options):
    """A model with random numbers of about the right size, faster than by its initialisers."""
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: build_student(config, **options, rngs=nnx.Rngs(0)))
    )
    rng = np.random.default_rng(0)

    def draw(x):
        if len(x.shape) == 1:
            return rng.uniform(0.5, 1.5, x.shape).astype(np.float32)
        return rng.standard_normal(x.shape, np.float32) / np.sqrt(
            np.prod(x.shape[:-1]), dtype=np.float32
        )

    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(draw(x)), state))


def jitted(model):
    return jax.jit(lambda *args, **kwargs: model(*args, **kwargs))
