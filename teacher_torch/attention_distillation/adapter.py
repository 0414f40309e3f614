"""Attention distillation as a teacher of the dump."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.attention_distillation.config import AttentionDistillationConfig
from teacher_torch.attention_distillation.distillation import AttentionDistillation
from teacher_torch.devices import MemoryNeed
from teacher_torch.estimate import trial_rows, unet_trial
from teacher_torch.latent_diffusion import Components
from teacher_torch.styleid.adapter import StyleIDTeacher, open_styleid
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.teacher import Key, Piece, Prepared, Role, Runtime, Teacher

GRADIENT_ROWS = 10
"""Rows without gradients that take as much memory as one with: tensors kept for the backward pass,
counted on Stable Diffusion 1.5."""


class AttentionDistillationTeacher(Teacher):
    """Pairs of a tile share the features of their pictures, and StyleID's joint sampling before.

    Each picture is prepared by its latents, or by StyleID's inversion where that is the start.
    """

    def __init__(self, components: Components, config: AttentionDistillationConfig):
        self.config = config
        self._start = StyleIDTeacher(components, config.styleid())
        self.size_px, self.side_multiple = self._start.size_px, self._start.side_multiple
        self.device = self._start.device
        # Each pair is optimised by itself: beyond 8 x 8 a tile saves 4 % and risks more work.
        self.tile = (8, 8)
        self._distillation = AttentionDistillation(
            components.unet, components.scheduler, components.null_text_embedding, config
        )

    def settings(self) -> dict[str, Any]:
        """The method's settings and the sha256 of UNet and autoencoder."""
        weights = {"weights_sha256": self._start.components.weights_sha256()}
        return {"attention_distillation": asdict(self.config), **weights}

    def arrays(self) -> dict[str, np.ndarray]:
        """The embedding of the empty text, which a later start need not compute."""
        return self._start.arrays()

    def prepare(
        self, role: Role, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]
    ) -> Prepared:
        """ "latents", float32 [b n c h w]: clean ones alone, or all of StyleID's inversion."""
        self._share_limits()
        if self.config.start == "styleid":
            return self._start.prepare(role, images, keys)
        return Prepared({"latents": self._start.styleid.encode(images)[:, None]})

    def stylise(
        self,
        contents: Prepared,
        styles: Prepared,
        pairs: Int[Tensor, "p 2"],
        keys: Sequence[Key],
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """Distil all pairs at once, then decode one after the other."""
        self._share_limits()
        order = torch.argsort(pairs[:, 1], stable=True)
        after_styleid = self.config.start == "styleid"
        # Copies: what StyleID makes in inference mode cannot be kept for a backward pass.
        clean = [p.tensors["latents"][:, 0].to(self.device).clone() for p in (contents, styles)]
        if after_styleid:
            latents = self._start.sample(contents, styles, pairs)[order].clone()
        else:
            latents = clean[0][pairs[order, 0]]
        distilled = self._distillation.distil(
            latents, *clean, pairs[order], self._distillation.timesteps(spread=after_styleid)
        )
        for latents in distilled[torch.argsort(order)].split(1):
            yield self._start.styleid.decode(latents)[0]

    def preparation_work(self, role: Role, pictures: int) -> int:
        """Rows of the inversions, if StyleID is the start."""
        if self.config.start == "content":
            return 0
        return self._start.preparation_work(role, pictures)

    def work(self, contents: int, styles: int, pairs: int) -> int:
        """Per step a row for each content and style, and two for each pair and Adam step: its
        backward pass counts as another."""
        own = self.config.num_steps * (contents + styles + 2 * self.config.iterations * pairs)
        if self.config.start == "content":
            return own
        return own + self._start.work(contents, styles, pairs)

    def trial(self, piece: Piece, size_px: int) -> int:
        """A UNet call with its backward pass."""
        if piece != "pair":
            return 0
        return unet_trial(self._start.components, size_px, trial_rows(self), gradient=True)

    def memory(self, size_px: int, contents: int, styles: int, pairs: int) -> MemoryNeed:
        """What StyleID's sampling takes, with rows that keep what their gradients need."""
        need = self._start.memory(size_px, contents, styles, pairs)
        return replace(need, row=GRADIENT_ROWS * need.row)

    def _share_limits(self) -> None:
        for part in (self._start, self._distillation):
            part.rows_per_call, part.after_call = self.rows_per_call, self.after_call


def open_attention_distillation(
    config: AttentionDistillationConfig, runtime: Runtime
) -> AttentionDistillationTeacher:
    """Load the model and set attention distillation up on it.

    Raises:
        InputError: the model cannot be loaded.
    """
    components = open_styleid(StyleIDConfig(), runtime).components
    return AttentionDistillationTeacher(components, config)
