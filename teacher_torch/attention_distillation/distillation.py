"""The two algorithms of attention distillation, for a joint tile of contents and styles.

`distil` optimises latents at clean level ("style transfer and texture by optimisation"); `sample`
corrects DDIM sampling after each step ("attention distillation guided sampling"). Features of a
picture depend on the picture and the timestep alone: a tile of B contents and S styles computes
those of its B + S pictures once per step, and all B S stylised rows share them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.attention_distillation.config import AttentionDistillationConfig
from teacher_torch.attention_distillation.features import DistilledAttention, Masks, Rows
from triplets import InputError

LOSS_SCALE = 2.0**12
"""Keeps the gradients of a mean over a million values above float16's smallest; Adam does not see
it, because it is taken off again."""

Purpose = Literal["adain", "style", "content"]
Noise = Callable[[int, Purpose], Tensor]


class AttentionDistillation:
    """Attention distillation (Zhou et al., CVPR 2025) with one UNet.

    Latents are scaled float32 [b c h w]; `pairs` [p 2] are rows of contents and of styles, sorted
    by style. Gradients reach the stylised latents alone: weights are frozen and features of
    contents and styles are constants. Sums of losses are over rows, so that a row's result does not
    depend on the tile beyond rounding, which the signs of L1 gradients amplify.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        scheduler,
        null_text_embedding: Float[Tensor, "1 n d"],
        config: AttentionDistillationConfig | None = None,
        rows_per_call: int = 8,
    ):
        """
        Args:
            unet: the denoising network, its weights without gradients.
            scheduler: any diffusers scheduler of the model; its noise schedule is read.
            null_text_embedding: the condition of every row.
            config: the method's settings.
            rows_per_call: most stylised rows of one call with gradients; they take ten times the
                memory of a row without.
        """
        self.unet = unet
        self.config = config or AttentionDistillationConfig()
        self.rows_per_call = rows_per_call
        self.scheduler = DDIMScheduler.from_config(scheduler.config)
        self.null_text_embedding = null_text_embedding.to(unet.device, unet.dtype)
        self.after_call: Callable[[int], None] = lambda rows: None
        """Called with a call's UNet rows (a backward pass counts as another), for progress."""
        self.after_step: Callable[[Tensor, Tensor, Tensor], None] = lambda *_: None
        """Called after each Adam step with the latents and the rows' style and content losses."""

    def timesteps(self, spread: bool) -> list[int]:
        """Timesteps of `distil`: DDIM's list of `num_steps`, or as many evenly from the 20th last.

        Args:
            spread: start at 981 however few the steps are, as suits latents that are stylised
                already; otherwise the authors' leading list, which starts later.
        """
        count = self.config.num_steps
        if not spread:
            self.scheduler.set_timesteps(count)
            return self.scheduler.timesteps.tolist()
        return torch.linspace(981, 1, count).round().long().tolist()

    def distil(
        self,
        latents: Float[Tensor, "p c h w"],
        contents: Float[Tensor, "b c h w"] | None,
        styles: Float[Tensor, "s c h2 w2"],
        pairs: Int[Tensor, "p 2"],
        timesteps: Sequence[int],
        masks: Masks | None = None,
    ) -> Float[Tensor, "p c h w"]:
        """Optimise latents so that their attentions give what the style's keys and values would.

        No noise is added anywhere: the network sees clean latents at timestep t, and one Adam runs
        through all timesteps.

        Args:
            latents: where to start: the contents' own latents, StyleID's result, or noise.
            contents: clean latents whose queries are kept; None for texture synthesis.
            styles: clean latents of the styles.
            pairs: content and style of each row of `latents`, sorted by style.
            timesteps: visited in this order, each for `iterations` steps.
            masks: which region of each row is painted by which region of its style; by default all
                by all. A region too small for a layer's tokens may find nothing there, which pulls
                its output to 0, as in the authors' program.

        Raises:
            InputError: a label of a row that its style lacks.
        """
        if masks is not None:
            _check_labels(masks, pairs)
        x = latents.detach().clone().float().requires_grad_()
        config = self.config
        optimiser = torch.optim.Adam([x], config.learning_rate)
        total, done = len(timesteps) * config.iterations, 0
        # At the content itself the queries' distance is zero but for rounding, of which the sign of
        # an L1 gradient would make a random direction of full size.
        at_content = contents is not None and torch.equal(latents.float(), contents[pairs[:, 0]])
        for timestep in timesteps:
            with self._distilled() as distilled:
                self._record(distilled, contents, styles, timestep)
                for _ in range(config.iterations):
                    if config.decay:
                        optimiser.param_groups[0]["lr"] = config.learning_rate * (1 - done / total)
                    weight = 0.0 if at_content and done == 0 else config.content_weight
                    has_contents = contents is not None
                    self._adam_step(
                        distilled, optimiser, x, pairs, timestep, weight, has_contents, masks
                    )
                    done += 1
        return x.detach()

    def sample(
        self,
        latents: Float[Tensor, "p c h w"],
        contents: Float[Tensor, "b c h w"] | None,
        styles: Float[Tensor, "s c h w"],
        pairs: Int[Tensor, "p 2"],
        noise: Noise,
        *,
        adain: bool = True,
        start_time: int = 999,
        after_ddim: Callable[[Tensor], None] = lambda latents: None,
    ) -> Float[Tensor, "p c h w"]:
        """DDIM sampling, corrected after each step below `start_time` by a few Adam steps.

        Args:
            latents: noise to start from.
            contents, styles: clean latents.
            pairs: as in `distil`.
            noise: fresh noise of a step (by number) and purpose: [s c h w] for "adain" and "style",
                [b c h w] for "content".
            adain: move the latents' channel statistics to the style's at the same noise level.
            start_time: steps at this timestep or above are left alone.
            after_ddim: called with the latents after each DDIM step.
        """
        self.scheduler.set_timesteps(self.config.num_steps)
        ratio = self.scheduler.config.num_train_timesteps // self.config.num_steps
        x = latents.detach().clone().float()
        for step, timestep in enumerate(self.scheduler.timesteps.tolist()):
            with torch.no_grad():
                output = torch.cat([self._predict(part, timestep) for part in x.split(64)])
                x = self.scheduler.step(output.float(), timestep, x).prev_sample
            after_ddim(x)
            if timestep >= start_time:
                continue
            level = max(timestep - ratio, 0)
            if adain:
                x = _adain(x, self._noised(styles, noise(step, "adain"), level), pairs)
            noised = self._noised(styles, noise(step, "style"), level)
            noised_contents = None
            if contents is not None:
                noised_contents = self._noised(contents, noise(step, "content"), level)
            x = x.detach().requires_grad_()
            optimiser = torch.optim.Adam([x], self.config.learning_rate)
            with self._distilled() as distilled:
                self._record(distilled, noised_contents, noised, level)
                for _ in range(self.config.iterations):
                    weight = self.config.content_weight
                    has_contents = contents is not None
                    self._adam_step(distilled, optimiser, x, pairs, level, weight, has_contents)
            x = x.detach()
        return x

    def losses(
        self, distilled: DistilledAttention, latents: Tensor, rows: Rows, timestep: int
    ) -> tuple[Float[Tensor, " p"], Float[Tensor, " p"]]:
        """Style and content loss of each row, with gradients to `latents`."""
        distilled.start_call(rows)
        self._predict(latents, timestep)
        zeros = latents.new_zeros(len(latents))
        return distilled.style_losses + zeros, distilled.content_losses + zeros

    def _distilled(self) -> DistilledAttention:
        return DistilledAttention(self.unet, self.config.layers, self.config.style_scale)

    @torch.no_grad()
    def _record(
        self, distilled: DistilledAttention, contents: Tensor | None, styles: Tensor, timestep: int
    ) -> None:
        """Features of contents and styles; pictures of different sizes cannot share a call."""
        for kind, pictures in (("contents", contents), ("styles", styles)):
            for part in () if pictures is None else pictures.split(64):
                distilled.start_call(Rows(**{kind: len(part)}))
                self._predict(part, timestep)
                self.after_call(len(part))

    def _adam_step(
        self,
        distilled: DistilledAttention,
        optimiser: torch.optim.Adam,
        x: Float[Tensor, "p c h w"],
        pairs: Int[Tensor, "p 2"],
        timestep: int,
        weight: float,
        has_contents: bool,
        masks: Masks | None = None,
    ) -> None:
        gradient = torch.zeros_like(x)
        of_style, of_content = [], []
        for part in _calls(len(x), self.rows_per_call):
            here = pairs[part]
            rows = Rows(
                stylised_contents=here[:, 0] if has_contents else None,
                stylised_per_style=tuple(torch.bincount(here[:, 1]).tolist()),
                masks=None if masks is None else Masks(masks.results[part], masks.styles),
            )
            with torch.enable_grad():
                latents = x.detach()[part].requires_grad_()
                style, content = self.losses(distilled, latents, rows, timestep)
                total = (style + weight * content).sum()
                (own,) = torch.autograd.grad(total * LOSS_SCALE, latents)
            gradient[part] = own / LOSS_SCALE
            of_style.append(style.detach())
            of_content.append(content.detach())
            self.after_call(2 * len(here))
        x.grad = gradient
        optimiser.step()
        self.after_step(x.detach(), torch.cat(of_style), torch.cat(of_content))

    def _noised(self, latents: Tensor, noise: Tensor, level: int) -> Tensor:
        return self.scheduler.add_noise(latents, noise, torch.tensor([level]))

    def _predict(self, latents: Float[Tensor, "b c h w"], timestep: int) -> Tensor:
        return self.unet(
            latents.to(self.unet.dtype),
            torch.tensor(timestep, device=self.unet.device),
            self.null_text_embedding.expand(len(latents), -1, -1),
        ).sample


def _check_labels(masks: Masks, pairs: Int[Tensor, "p 2"]) -> None:
    for row, (result, style) in enumerate(zip(masks.results, pairs[:, 1].tolist(), strict=True)):
        missing = set(result.unique().tolist()) - set(masks.styles[style].unique().tolist())
        if missing:
            raise InputError(
                f"the mask of row {row} has the label {min(missing)}, the mask of its style does "
                "not; expected labels of regions that the style has."
            )


def _calls(rows: int, rows_per_call: int) -> Iterator[slice]:
    """The fewest calls of at most `rows_per_call` rows, of nearly equal size."""
    count = math.ceil(rows / rows_per_call)
    for k in range(count):
        yield slice(rows * k // count, rows * (k + 1) // count)


def _adain(
    x: Float[Tensor, "p c h w"], styles: Float[Tensor, "s c h w"], pairs: Int[Tensor, "p 2"]
) -> Float[Tensor, "p c h w"]:
    """Channel statistics of each row's own style; unbiased deviations, 1e-6 added to the row's."""
    style = styles[pairs[:, 1]]
    dims = (2, 3)
    scaled = (x - x.mean(dims, keepdim=True)) / (x.std(dims, keepdim=True) + 1e-6)
    return scaled * style.std(dims, keepdim=True) + style.mean(dims, keepdim=True)
