"""Checks of the pictures that networks get."""

from jax.typing import ArrayLike
from jaxtyping import Float


def check_sides(
    name: str, images: Float[ArrayLike, "b h w 3"], *, multiple: int, at_least: int = 1
) -> None:
    """Refuse pictures that a network cannot divide into its tokens.

    Args:
        name: what the pictures are, for the message.
        multiple: pixels of which the sides must be multiples.
        at_least: that many times.

    Raises:
        ValueError: names the size and what is expected.
    """
    h, w = images.shape[1:3]
    minimum = at_least * multiple
    if h % multiple or w % multiple or h < minimum or w < minimum:
        raise ValueError(
            f"the {name} is {w} x {h} px; expected sides that are multiples of {multiple} px and "
            f"at least {minimum} px: resize or pad it"
        )
