import jax.numpy as jnp
import numpy as np

from student_jax.nets.position_encoding import cells, grid_positions, position_encoding


def test_position_encoding_by_hand():
    encoding = position_encoding(jnp.zeros((1, 2, 4), bool), 8)
    assert encoding.shape == (1, 2, 4, 8)
    # Row 1 of 2 is at pi, column 1 of 4 at pi / 2; frequencies 1 and 1 / 100.
    y, x = np.pi, np.pi / 2
    expected = [np.sin(y), np.cos(y), np.sin(y / 100), np.cos(y / 100)]
    expected += [np.sin(x), np.cos(x), np.sin(x / 100), np.cos(x / 100)]
    # The denominator's epsilon of 1e-6 moves the angles by about that much.
    np.testing.assert_allclose(encoding[0, 0, 0], expected, atol=1e-5)


def test_position_encoding_does_not_count_padding():
    padding = jnp.zeros((1, 4, 6), bool).at[:, 2:].set(True).at[:, :, 3:].set(True)
    padded = position_encoding(padding, 8)[:, :2, :3]
    np.testing.assert_array_equal(padded, position_encoding(jnp.zeros((1, 2, 3), bool), 8))


def test_positions_of_a_grid_count_what_is_not_hidden():
    grid, mask = jnp.zeros((1, 4, 6, 8), jnp.bfloat16), np.zeros((1, 32, 48), bool)
    mask[:, 16:], mask[:, :, 24:] = True, True
    hidden = cells(mask, 8)
    assert hidden.shape == (1, 4, 6) and hidden.sum() == 24 - 2 * 3
    positions = grid_positions(grid, hidden)
    assert positions.dtype == jnp.bfloat16
    expected = position_encoding(hidden, 8).astype(jnp.bfloat16)
    np.testing.assert_array_equal(positions, expected)
    plain = grid_positions(jnp.zeros((3, 2, 3, 8)))
    np.testing.assert_array_equal(plain, position_encoding(jnp.zeros((1, 2, 3), bool), 8))
