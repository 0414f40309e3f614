"""DDIM inversion and sampling (Song et al., ICLR 2021) in the pairing of StyleID's two programs.

Both visit timesteps t_i = 1 + i * (1000 // N), i = 0 .. N-1, and keep the latents x_0 .. x_N of the
inversion, where x_i is what the network sees at t_i. They differ in the noise level that x_i is
taken to have, written as a[t], the cumulative product of the noise schedule:

               x_i is at     x_N is at    sampling starts        decodes
    "paper"    a[t_i]        a[999]       at t_(N-2)             x_prev at a[0]
    "port"     a[t_i - r]    a[t_(N-1)]   at t_(N-1), r=1000//N  the last predicted x0

The original program thus skips its first sampling step and feeds latents of level 999 at 961; that
is the program which reproduces the paper's figures, so "paper" keeps it.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class DDIMSchedule:
    """Timesteps and noise levels of one inversion and one sampling run, by step index i."""

    timesteps: tuple[int, ...]
    """t_0 < .. < t_(N-1), for both directions."""
    inversion_levels: tuple[float, ...]
    """N + 1 cumulative alphas: inversion step i goes from level i to level i + 1."""
    sampling_levels: tuple[float, ...]
    """N + 1 cumulative alphas: sampling step i goes from level i + 1 to level i."""
    sampling_start: int
    """Index of the first sampling step; sampling runs from there down to 0."""
    decodes_x0: bool
    """Whether the last step's predicted x0, not its x_prev, is the result."""
    prediction_type: Literal["epsilon", "v_prediction"]

    @classmethod
    def from_scheduler(cls, scheduler, num_steps: int, convention: str) -> "DDIMSchedule":
        """The schedule over `scheduler.alphas_cumprod` for one of the conventions above."""
        alphas = [float(a) for a in scheduler.alphas_cumprod]
        ratio = len(alphas) // num_steps
        timesteps = tuple(1 + ratio * i for i in range(num_steps))
        if timesteps[-1] >= len(alphas):
            raise ValueError(
                f"num_steps is {num_steps}; it must leave room below {len(alphas)} timesteps."
            )
        prediction_type = scheduler.config.prediction_type
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f'the scheduler predicts "{prediction_type}"; expected epsilon or v_prediction.'
            )
        visited = tuple(alphas[t] for t in timesteps)
        return cls(
            timesteps=timesteps,
            inversion_levels=(
                (*visited, alphas[-1]) if convention == "paper" else (alphas[0], *visited)
            ),
            sampling_levels=(alphas[0], *visited),
            sampling_start=num_steps - 2 if convention == "paper" else num_steps - 1,
            decodes_x0=convention == "port",
            prediction_type=prediction_type,
        )

    def step(
        self, latents: Float[Tensor, "b c h w"], output: Tensor, level: float, next_level: float
    ) -> tuple[Tensor, Tensor]:
        """One deterministic DDIM step (Song et al., eq. 12, sigma 0) in the latents' precision.

        Returns the latents at `next_level` and the predicted x0. Inversion is the same step with
        `next_level` noisier than `level`.
        """
        output = output.to(latents.dtype)
        signal, noise = level**0.5, (1 - level) ** 0.5
        if self.prediction_type == "epsilon":
            epsilon = output
            x0 = (latents - noise * epsilon) / signal
        else:
            x0 = signal * latents - noise * output
            epsilon = signal * output + noise * latents
        return next_level**0.5 * x0 + (1 - next_level) ** 0.5 * epsilon, x0


def adain(
    content: Float[Tensor, "*b c h w"], style: Float[Tensor, "*b c h2 w2"], eps: float = 0.0
) -> Float[Tensor, "*b c h w"]:
    """Content latents with the channel means and standard deviations of the style (eq. 10).

    Unbiased deviations, per sample; `eps` is added to the content's (the port uses 1e-4). Leading
    dimensions broadcast.
    """
    dims = (-2, -1)
    scaled = (content - content.mean(dims, keepdim=True)) / (content.std(dims, keepdim=True) + eps)
    return scaled * style.std(dims, keepdim=True) + style.mean(dims, keepdim=True)
