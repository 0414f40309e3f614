"""StyleID as a teacher of the dump."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.devices import MemoryNeed
from teacher_torch.estimate import trial_rows, unet_trial
from teacher_torch.latent_diffusion import Components, load_components
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.memory import memory_need
from teacher_torch.styleid.teacher import Inversion, StyleID, side_multiple
from teacher_torch.teacher import Key, Piece, Prepared, Role, Runtime, Teacher

NULL_TEXT = "null_text"
"""Name of the empty text's embedding among a dataset's arrays."""


class StyleIDTeacher(Teacher):
    """Each picture is prepared by its inversion; the pairs of a tile are sampled jointly."""

    def __init__(self, components: Components, config: StyleIDConfig):
        self.components = components
        self.styleid = StyleID(*components, config)
        self.size_px = components.native_size
        self.side_multiple = side_multiple(components.unet, components.vae)
        self.device = components.unet.device
        # Content and style rows are shared by the pairs of a tile: 2 / side of its cost.
        side = 8 if self.device.type == "cpu" else 16
        self.tile = (side, side)

    def settings(self) -> dict[str, Any]:
        """The method's settings and the sha256 of UNet and autoencoder."""
        return {
            "styleid": asdict(self.styleid.config),
            "weights_sha256": self.components.weights_sha256(),
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """The embedding of the empty text, which a later start need not compute."""
        return {NULL_TEXT: self.components.null_text_embedding.float().cpu().numpy()}

    def prepare(
        self, role: Role, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]
    ) -> Prepared:
        """The pictures' inversions: "latents", float32 [b n c h w]."""
        return Prepared({"latents": self._ready().invert(images).latents.transpose(0, 1)})

    def stylise(
        self,
        contents: Prepared,
        styles: Prepared,
        pairs: Int[Tensor, "p 2"],
        keys: Sequence[Key],
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """Sample all pairs jointly, then decode one after the other."""
        # One at a time, because pictures in float32 are large.
        for latents in self.sample(contents, styles, pairs).split(1):
            yield self.styleid.decode(latents)[0]

    def sample(
        self, contents: Prepared, styles: Prepared, pairs: Int[Tensor, "p 2"]
    ) -> Float[Tensor, "p c h w"]:
        """The latents of all pairs."""
        content, style = (
            Inversion(pictures.tensors["latents"].transpose(0, 1).to(self.device))
            for pictures in (contents, styles)
        )
        return self._ready().sample(content, style, pairs)

    def preparation_work(self, role: Role, pictures: int) -> int:
        """One row per step of the inversion."""
        return self.styleid.config.num_steps * pictures

    def work(self, contents: int, styles: int, pairs: int) -> int:
        """One row for each content, style and pair per step of sampling."""
        return (self.styleid.schedule.sampling_start + 1) * (contents + styles + pairs)

    def trial(self, piece: Piece, size_px: int) -> int:
        """A UNet call; what sampling injects costs little beside it."""
        if piece != "pair":
            return 0
        return unet_trial(self.components, size_px, trial_rows(self), gradient=False)

    def memory(self, size_px: int, contents: int, styles: int, pairs: int) -> MemoryNeed:
        """What joint sampling takes; inversions take less."""
        return memory_need(
            self.components.unet,
            self.components.vae,
            self.styleid.config,
            size_px=size_px,
            contents=contents,
            styles=styles,
            pairs=pairs,
        )

    def _ready(self) -> StyleID:
        """The method with the dump's present limit and hook."""
        self.styleid.rows_per_call = self.rows_per_call
        self.styleid.after_call = self.after_call
        return self.styleid


def open_styleid(config: StyleIDConfig, runtime: Runtime) -> StyleIDTeacher:
    """Load the model and set StyleID up on it.

    Raises:
        InputError: the model cannot be loaded.
    """
    stored = runtime.stored(NULL_TEXT, (1, None, None), "<f4")
    components = load_components(
        runtime.model,
        runtime.device,
        runtime.dtype,
        None if stored is None else torch.from_numpy(stored),
    )
    if runtime.compile:
        components.unet.compile()
    return StyleIDTeacher(components, config)
