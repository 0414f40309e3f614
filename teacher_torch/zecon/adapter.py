"""ZeCon as a teacher of the dump."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from teacher_torch.denoisers import (
    GRADIENT_MAPS,
    Denoiser,
    module_sha256,
    open_denoiser,
)
from teacher_torch.devices import MemoryNeed
from teacher_torch.estimate import noise_like, trial_rows
from teacher_torch.guides import Guide, load_clip_guide, load_vgg_guide
from teacher_torch.teacher import Key, Piece, Prepared, Role, Runtime, Teacher
from teacher_torch.zecon.config import NAMES, ZeConConfig
from teacher_torch.zecon.guidance import (
    POSITIONS,
    Content,
    Target,
    VGGSlices,
    ZeCon,
    load_vgg_slices,
)
from teacher_torch.zecon.patches import PatchNumbers, cut_patches, draw_patches


@dataclass(frozen=True)
class KeyedDraws:
    """Random numbers that depend on each picture's own key, the step and the purpose alone."""

    keys: Sequence[Key]
    config: ZeConConfig

    def noise(self, step: int, purpose: str, shape: tuple[int, ...]) -> Float[Tensor, "b c h w"]:
        """Normal noise."""
        generators = (key.generator("noise", step, purpose) for key in self.keys)
        return torch.stack([torch.randn(shape[1:], generator=g) for g in generators])

    def patches(self, step: int, purpose: str, picture_px: tuple[int, int]) -> PatchNumbers:
        """Patches, or distortions of whole pictures for losses that are not of patches."""
        config = self.config
        areas = config.patch_areas if purpose.endswith("patch") else None
        return PatchNumbers.cat(
            [
                draw_patches(
                    key.generator("patches", step, purpose),
                    config.patches,
                    picture_px,
                    config.patch_px,
                    areas,
                    config.distortion,
                )
                for key in self.keys
            ]
        )

    def positions(self, step: int, layer: int, count: int) -> Int[Tensor, "b n"]:
        """The first of a permutation."""
        generators = (key.generator("positions", step, layer) for key in self.keys)
        chosen = (torch.randperm(count, generator=g)[:POSITIONS] for g in generators)
        return torch.stack(list(chosen))


class ZeConTeacher(Teacher):
    """Contents are inverted once, styles embedded once; pairs are guided in batches, each row with
    its own random numbers."""

    def __init__(
        self, denoiser: Denoiser, guide: Guide, config: ZeConConfig, vgg: VGGSlices | None
    ):
        self.denoiser, self.guide, self.config, self.vgg = denoiser, guide, config, vgg
        self.zecon = ZeCon(denoiser, guide, config, vgg)
        self.size_px, self.side_multiple = denoiser.native_size, denoiser.side_multiple
        self.device = denoiser.device
        # Nothing is shared by the pairs of a tile but what is prepared.
        self.tile = (4, 4)

    def settings(self) -> dict[str, Any]:
        """The settings, what the method may be called, and the sha256 of all networks."""
        config = asdict(self.config)
        config["vgg19"] = None if self.config.vgg19 is None else "file"
        vgg = {} if self.vgg is None else {"vgg_sha256": module_sha256(self.vgg)}
        return {
            "zecon": config,
            "method": NAMES[self.config.guide],
            "weights_sha256": self.denoiser.weights_sha256(),
            "guide_sha256": self.guide.weights_sha256(),
            **vgg,
        }

    def prepare(
        self, role: Role, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]
    ) -> Prepared:
        """Of contents "clean" and "inverted" states and "embedding"; of styles "target", and with
        prompts "source"."""
        if role == "style":
            return Prepared(self._embed_styles(images, keys))
        clean, inverted, embeddings = [], [], []
        for part in images.split(self.rows_per_call):
            clean.append(self.denoiser.encode(part))
            inverted.append(self._invert(clean[-1]))
            with torch.no_grad():
                embeddings += [self.guide.embed(x) for x in part.to(self.device).split(1)]
        return Prepared(
            {
                "clean": torch.cat(clean),
                "inverted": torch.cat(inverted),
                "embedding": torch.cat(embeddings),
            }
        )

    def stylise(
        self,
        contents: Prepared,
        styles: Prepared,
        pairs: Int[Tensor, "p 2"],
        keys: Sequence[Key],
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """Guide as many pairs at once as a call may have rows."""
        self.zecon.after_call = self.after_call
        rows = zip(pairs.tolist(), keys, strict=True)
        for batch in _batched(rows, self.rows_per_call):
            chosen, own_keys = zip(*batch, strict=True)
            content, style = (
                {name: t[list(indices)].to(self.device) for name, t in prepared.tensors.items()}
                for prepared, indices in zip(
                    (contents, styles), zip(*chosen, strict=True), strict=True
                )
            )
            final = self.zecon.sample(
                Content(content["clean"], content["inverted"]),
                Target(style["target"], style.get("source", content["embedding"])),
                KeyedDraws(own_keys, self.config),
            )
            with torch.no_grad():
                for states in final.split(1):
                    yield self.denoiser.decode(states)[0]

    def preparation_work(self, role: Role, pictures: int) -> int:
        """One row per step of the inversion."""
        if role == "style" or self.config.inversion == "ddpm":
            return 0
        return (self.zecon.start + 1) * pictures

    def work(self, contents: int, styles: int, pairs: int) -> int:
        """Each pair is guided by itself."""
        return self.zecon.rows_per_step * (self.zecon.start + 1) * pairs

    def trial(self, piece: Piece, size_px: int) -> int:
        """Of a pair a guided step, with all that the guide does; of a content a step of the
        inversion."""
        if piece == "style" or (piece == "content" and self.config.inversion == "ddpm"):
            return 0
        rows = trial_rows(self)
        states = noise_like((rows, *self.denoiser.state_shape(size_px)), self.device)
        if piece == "content":
            with torch.no_grad():
                self.denoiser.predict(states, self.zecon.timesteps[0])
            return rows
        with torch.no_grad():
            small = self.guide.embed(torch.zeros(1, 3, 32, 32, device=self.device))
        embedding = torch.ones_like(small).expand(rows, -1)
        draws = KeyedDraws([Key(0, str(i), "trial") for i in range(rows)], self.config)
        target = Target(embedding, -embedding)
        self.zecon.step(states, self.zecon.start, states, target, draws)
        return self.zecon.rows_per_step * rows

    def memory(self, size_px: int, contents: int, styles: int, pairs: int) -> MemoryNeed:
        """A row keeps what the network, the decoder and the guide's patches need for gradients."""
        network, decoder = self.denoiser.row_bytes(size_px)
        row = GRADIENT_MAPS * (network + decoder)
        row += self.config.patches * self.guide.picture_bytes(self.config.patch_px)
        guides = self.guide.weights_bytes() + (0 if self.vgg is None else 4 * 2**20)
        return MemoryNeed(
            weights=self.denoiser.weights_bytes() + guides,
            step=0,
            row=row,
            picture=max(decoder, self.guide.picture_bytes(size_px)),
        )

    def _invert(self, clean: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.config.inversion == "ddpm":
            return torch.zeros_like(clean)  # never read
        self.zecon.after_call = self.after_call
        return self.zecon.invert(clean)

    @torch.no_grad()
    def _embed_styles(
        self, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]
    ) -> dict[str, Tensor]:
        if self.config.guide == "clip_text":
            texts = self.guide.embed_texts([prompt(key.style) for key in keys])
            source = self.guide.embed_texts([self.config.source_prompt])
            return {"target": texts, "source": source.expand(len(texts), -1)}
        # As the pictures that are guided are seen: in distorted patches.
        targets = []
        for image, key in zip(images, keys, strict=True):
            numbers = KeyedDraws([key], self.config).patches(
                0, "style_patch", (image.shape[-2], image.shape[-1])
            )
            patches = cut_patches(image[None].to(self.device), numbers, self.config.patch_px)
            targets.append(self.guide.embed(patches).mean(0))
        return {"target": torch.stack(targets)}


def prompt(style_id: str) -> str:
    """The prompt that a style picture stands for: its file name, "oil_painting.jpg" for "oil
    painting"."""
    return PurePosixPath(style_id).stem.replace("_", " ").strip()


def _batched(rows: Iterator, size: int) -> Iterator[tuple]:
    while batch := tuple(itertools.islice(rows, size)):
        yield batch


def open_zecon(config: ZeConConfig, runtime: Runtime) -> ZeConTeacher:
    """Load the model and the guide.

    Raises:
        InputError: something of them cannot be loaded.
    """
    # The guide first: it is the smaller, and likelier to be missing.
    if config.guide == "vgg16":
        guide = load_vgg_guide(runtime.device)
    else:
        guide = load_clip_guide(
            config.clip, runtime.device, "pool", texts=config.guide == "clip_text"
        )
    vgg = load_vgg_slices(config.vgg19, runtime.device) if config.vgg_weight else None
    denoiser = open_denoiser(runtime)
    return ZeConTeacher(denoiser, guide, config, vgg)
