import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    """Losses widen no type and repeat no axis unasked. Optax and Flax do, so it is their rule here
    alone."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
