"""StyleDiffusion as a teacher of the dump."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.denoisers import GRADIENT_MAPS, Denoiser, open_denoiser
from teacher_torch.devices import MemoryNeed
from teacher_torch.estimate import noise_like, trial_rows
from teacher_torch.guides import Guide, load_clip_guide, load_vgg_guide
from teacher_torch.pixels import to_model_range
from teacher_torch.style_diffusion.config import NAMES, StyleDiffusionConfig
from teacher_torch.style_diffusion.disentangling import Embedded, StyleDiffusion
from teacher_torch.teacher import Key, Piece, Prepared, Role, Runtime, Teacher
from triplets import ImageSource, InputError, load_images, open_source
from triplets.bundled import SAMPLES


class StyleDiffusionTeacher(Teacher):
    """Contents lose their style once; every style tunes a network, which its pairs are made with.

    The work goes style by style, and a tuned network is kept on disk while pairs need it.
    """

    tile, persistent = (256, 1), ("style",)

    def __init__(
        self,
        denoiser: Denoiser,
        guide: Guide,
        config: StyleDiffusionConfig,
        tuning_contents: ImageSource,
    ):
        self.denoiser, self.guide, self.config = denoiser, guide, config
        self.method = StyleDiffusion(denoiser, guide, config)
        self.size_px, self.side_multiple = denoiser.native_size, denoiser.side_multiple
        self.device = denoiser.device
        self.keep_prepared = config.keep_states
        self._source = tuning_contents
        self._pictures = load_images(tuning_contents, self.size_px, limit=config.content_passes)[0]
        self._contents: dict[int, list[Embedded]] = {}
        self._tuned = copy.copy(denoiser)
        self._tuned.network = copy.deepcopy(denoiser.network)

    def settings(self) -> dict[str, Any]:
        """The settings, what the method may be called, and the sha256 of what it learns from."""
        # Neither where pictures lie nor what is kept decides a pixel.
        config = asdict(self.config).items()
        decide = {k: v for k, v in config if k not in ("keep_states", "tuning_contents")}
        return {
            "style_diffusion": decide,
            "method": NAMES[self.config.guide],
            "weights_sha256": self.denoiser.weights_sha256(),
            "guide_sha256": self.guide.weights_sha256(),
            "tuning_contents_sha256": hashlib.sha256(self._pictures.images.tobytes()).hexdigest(),
        }

    def group(self, role: Role) -> int:
        """A network is tuned to one style."""
        return 1 if role == "style" else 16

    def prepare(
        self, role: Role, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]
    ) -> Prepared:
        """Of contents "latents" where transfer starts, of a style the tuned network's weights."""
        self.method.after_call = self.after_call
        if role == "content":
            parts = images.split(self.rows_per_call)
            return Prepared({"latents": torch.cat([self.method.remove(x).latents for x in parts])})
        contents = self._tuning_contents(images.shape[-1])
        tuned = self.method.tune(images, self.method.remove(images), contents)
        return Prepared({name: t[None] for name, t in tuned.network.state_dict().items()})

    def stylise(
        self,
        contents: Prepared,
        styles: Prepared,
        pairs: Int[Tensor, "p 2"],
        keys: Sequence[Key],
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """The pairs of one style after those of another, in the order of the plan."""
        self.method.after_call = self.after_call
        latents = contents.tensors["latents"]
        for style, rows in _runs(pairs):
            state = {name: tensor[style] for name, tensor in styles.tensors.items()}
            self._tuned.network.load_state_dict(state)
            for part in rows.split(self.rows_per_call):
                states = self.method.transfer(latents[part].to(self.device), self._tuned)
                with torch.no_grad():
                    for one in states.split(1):
                        yield self.denoiser.decode(one)[0]

    def preparation_work(self, role: Role, pictures: int) -> int:
        """Rows of the removal, and two for every Adam step of a style."""
        tuning = 2 * self.config.adam_steps if role == "style" else 0
        return (self.config.removal_rows + tuning) * pictures

    def work(self, contents: int, styles: int, pairs: int) -> int:
        """A row for each pair and step."""
        return self.config.reverse_steps * pairs

    def trial(self, piece: Piece, size_px: int) -> int:
        """Of a style one gradient of each of both losses, of a pair one UNet call."""
        if piece == "content":
            return 0
        rows = 1 if piece == "style" else trial_rows(self)
        states = noise_like((rows, *self.denoiser.state_shape(size_px)), self.device)
        timestep, network = self.config.transfer_time, self._tuned.network
        if piece != "style":
            with torch.no_grad():
                self.denoiser.predict(states, timestep)
            return rows
        network.requires_grad_(True)
        try:
            embedding = self.guide.embed(torch.zeros(1, 3, 32, 32, device=self.device)).detach()
            for guided in (False, True):
                clean = self._tuned.predict(states, timestep).clean
                loss = clean.square().mean()
                if guided:
                    loss = self.method.disentanglement_loss(clean, embedding, embedding + 1)
                loss.backward()
                network.zero_grad()
        finally:
            network.requires_grad_(False)
        return 4

    def memory(self, size_px: int, contents: int, styles: int, pairs: int) -> MemoryNeed:
        """Tuning takes one row with gradients, and of the network's weights a copy, gradients and
        both averages of Adam; a second copy stylises."""
        network, decoder = self.denoiser.row_bytes(size_px)
        weights = sum(p.nbytes for p in self.denoiser.network.parameters())
        tuning = GRADIENT_MAPS * (network + decoder) + self.guide.picture_bytes(size_px)
        return MemoryNeed(
            weights=self.denoiser.weights_bytes() + weights + self.guide.weights_bytes(),
            step=4 * weights + tuning,
            row=network,
            picture=decoder,
        )

    def _tuning_contents(self, size_px: int) -> list[Embedded]:
        """Prepared once per process; these rows are not in the plan."""
        if size_px not in self._contents:
            pictures = self._pictures
            if size_px != self.size_px:
                pictures = load_images(self._source, size_px, limit=self.config.content_passes)[0]
            print(f"preparing {len(pictures)} contents that styles are tuned on")
            self.method.after_call = lambda rows: None
            removed = [self.method.remove(to_model_range(x[None])) for x in pictures.images]
            self.method.after_call = self.after_call
            self._contents[size_px] = [
                Embedded(r.latents, self.method.embed(r.states)) for r in removed
            ]
        return self._contents[size_px]


def _runs(pairs: Int[Tensor, "p 2"]) -> Iterator[tuple[int, Int[Tensor, " k"]]]:
    """Each stretch of pairs with the same style: the style, and the rows of the contents."""
    styles, counts = pairs[:, 1].unique_consecutive(return_counts=True)
    yield from zip(styles.tolist(), pairs[:, 0].split(counts.tolist()), strict=True)


def open_style_diffusion(config: StyleDiffusionConfig, runtime: Runtime) -> StyleDiffusionTeacher:
    """Load the model, the guide and the contents that styles are tuned on.

    Raises:
        InputError: something of them cannot be loaded, or the networks are not float32.
    """
    if runtime.dtype != torch.float32:
        name = str(runtime.dtype).removeprefix("torch.")
        raise InputError(
            f"steps of {config.learning_rate} are lost in weights of {name}: give --dtype float32."
        )
    contents = open_source(config.tuning_contents or str(SAMPLES / "content"))
    if config.guide == "vgg16":
        guide = load_vgg_guide(runtime.device)
    else:
        guide = load_clip_guide(config.clip, runtime.device, "bicubic", texts=False)
    return StyleDiffusionTeacher(open_denoiser(runtime), guide, config, contents)
