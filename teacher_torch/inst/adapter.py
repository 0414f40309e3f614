"""InST as a teacher of the dump."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from teacher_torch.devices import MemoryNeed
from teacher_torch.estimate import trial_rows, unet_trial
from teacher_torch.inst.clip import (
    ImageTower,
    PromptWithStyle,
    load_image_tower,
    released_input,
)
from teacher_torch.inst.config import InSTConfig
from teacher_torch.inst.files import SUFFIXES, load_embedding
from teacher_torch.inst.module import InversionModule
from teacher_torch.inst.stylisation import Stylisation
from teacher_torch.inst.training import Conditions, Training
from teacher_torch.latent_diffusion import (
    Components,
    Posterior,
    decode,
    encode,
    has_text_encoder,
    load_text_encoder,
    weights_sha256,
)
from teacher_torch.pixels import to_uint8
from teacher_torch.styleid.adapter import NULL_TEXT, open_styleid
from teacher_torch.styleid.config import StyleIDConfig
from teacher_torch.styleid.memory import memory_need
from teacher_torch.styleid.teacher import side_multiple
from teacher_torch.teacher import Key, Piece, Prepared, Role, Runtime, Teacher
from triplets import InputError

GRADIENT_ROWS = 10
"""Rows without gradients that take as much memory as one with, as in attention distillation."""


class InSTTeacher(Teacher):
    """A style is prepared by a training, and a tile is all contents of one style.

    Contents are prepared by "latents" and "noise" [b c h w]; styles by "latents", the "condition"
    [b n d] of the UNet and, where the module is learned, the word's "embedding" [b d].
    """

    # A training costs what hundreds of pairs cost; nothing is shared between pairs.
    tile = (256, 1)
    persistent = ("style",)

    def __init__(
        self,
        components: Components,
        config: InSTConfig,
        prompt: PromptWithStyle | None = None,
        clip: ImageTower | None = None,
        embeddings: dict[str, InversionModule | Float[Tensor, " d"]] | None = None,
        towers_sha256: str | None = None,
    ):
        """
        Args:
            components: the model.
            config: the method's settings.
            prompt: where embeddings go; None if the condition itself is learned.
            clip: what embeds style pictures; None if nothing needs that.
            embeddings: what was learned before, by the style pictures' ids without their suffix;
                None to train.
            towers_sha256: identifies the text encoder, the image tower and the embeddings.
        """
        self.components, self.config = components, config
        self.size_px = components.native_size
        self.side_multiple = side_multiple(components.unet, components.vae)
        self.device = components.unet.device
        self._prompt, self._clip, self._embeddings = prompt, clip, embeddings
        self._towers_sha256 = towers_sha256
        unet, scheduler = components.unet, components.scheduler
        self._stylisation = Stylisation(unet, scheduler, components.null_text_embedding, config)
        self._training = Training(unet, scheduler, config)

    def settings(self) -> dict[str, Any]:
        """The method's settings, and hashes of all weights and of embeddings that are given."""
        places = ("clip", "embeddings")  # what they hold counts, not where they lie
        settings = {k: v for k, v in asdict(self.config).items() if k not in places}
        hashes = {"weights_sha256": self.components.weights_sha256()}
        if self._towers_sha256 is not None:
            hashes["towers_sha256"] = self._towers_sha256
        return {"inst": settings, **hashes}

    def arrays(self) -> dict[str, np.ndarray]:
        """The embedding of the empty text, which a later start need not compute."""
        return {NULL_TEXT: self.components.null_text_embedding.float().cpu().numpy()}

    def check_ids(self, contents: Sequence[str], styles: Sequence[str]) -> None:
        """Refuse a style for which no embedding is given, if any are."""
        for style in () if self._embeddings is None else styles:
            if _stem(style) not in self._embeddings:
                raise InputError(
                    f'--embeddings {self.config.embeddings}: nothing there for "{style}"; expected '
                    f"a file {_stem(style)} with one of the suffixes {', '.join(SUFFIXES)}."
                )

    def group(self, role: Role) -> int:
        """Styles that are trained together."""
        return self.config.together if role == "style" else super().group(role)

    def prepare(
        self, role: Role, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]
    ) -> Prepared:
        """Encode contents; train styles."""
        vae = self.components.vae
        if role == "content":
            latents = encode(vae, images).mean
            noise = [
                torch.randn(latents.shape[1:], generator=key.generator("noise")) for key in keys
            ]
            return Prepared({"latents": latents, "noise": torch.stack(noise)})
        # Of each picture and its mirror image, once for the whole training.
        posteriors = [encode(vae, torch.stack([image, image.flip(-1)])) for image in images]
        latents = torch.stack([posterior.mean[0] for posterior in posteriors])
        if self._prompt is None:
            condition = self._train_conditions(posteriors, keys)
            return Prepared({"latents": latents, "condition": condition})
        if self._embeddings is None:
            embedding = self._train_modules(images, posteriors, keys)
        else:
            embedding = self._read(images, keys)
        with torch.no_grad():
            condition = self._prompt(embedding)
        return Prepared({"latents": latents, "condition": condition, "embedding": embedding})

    def stylise(
        self,
        contents: Prepared,
        styles: Prepared,
        pairs: Int[Tensor, "p 2"],
        keys: Sequence[Key],
    ) -> Iterator[Float[Tensor, "3 h w"]]:
        """As many pairs at a time as fit one UNet call."""
        stylisation = self._stylisation
        stylisation.rows_per_call, stylisation.after_call = self.rows_per_call, self.after_call
        guided = 1 if self.config.guidance == 1 else 2
        for some in pairs.split(max(1, self.rows_per_call // guided)):
            content, style = some.T
            latents = stylisation.stylise(
                contents.tensors["latents"][content].to(self.device),
                styles.tensors["latents"][style].to(self.device),
                contents.tensors["noise"][content].to(self.device),
                styles.tensors["condition"][style].to(self.device),
            )
            for one in latents.split(1):  # pictures in float32 are large
                yield decode(self.components.vae, one)[0]

    def preparation_work(self, role: Role, pictures: int) -> int:
        """Two rows for each style, step and noise of the training: one of them for the gradient."""
        if role == "content" or self._embeddings is not None:
            return 0
        return 2 * self.config.training_steps * self.config.batch * pictures

    def work(self, contents: int, styles: int, pairs: int) -> int:
        """One row for each pair's noise, and one or, with guidance, two for each of its steps."""
        return self._stylisation.rows(pairs)

    def trial(self, piece: Piece, size_px: int) -> int:
        """A UNet call, of a style that is trained with its backward pass."""
        if piece == "content" or (piece == "style" and self._embeddings is not None):
            return 0
        gradient = piece == "style"
        return unet_trial(self.components, size_px, trial_rows(self), gradient=gradient)

    def memory(self, size_px: int, contents: int, styles: int, pairs: int) -> MemoryNeed:
        """What training takes, with rows that keep what their gradients need."""
        networks = (self.components.unet, self.components.vae)
        need = memory_need(
            *networks, StyleIDConfig(), size_px=size_px, contents=0, styles=0, pairs=0
        )
        if self._prompt is not None:
            text = sum(p.nbytes for p in self._prompt.encoder.parameters())
            need = replace(need, weights=need.weights + text)
        if self._embeddings is not None:
            return need
        if self._prompt is None:
            style = 4 * 4 * self.components.null_text_embedding.numel()
        else:
            style = 4 * InversionModule.live_bytes(self._prompt.width) + self._prompt.kept_bytes()
        # Parameters, their gradients and two moments, and what the text encoder keeps.
        step = self.config.together * style
        return replace(need, step=step, row=GRADIENT_ROWS * need.row)

    def _train_conditions(
        self, posteriors: Sequence[Posterior], keys: Sequence[Key]
    ) -> Float[Tensor, "b n d"]:
        """Learn the conditions themselves, from the empty text's."""
        null = self.components.null_text_embedding.float()
        learned = nn.Parameter(null.expand(len(keys), -1, -1).clone())
        self._train([learned], lambda *_: learned, posteriors, keys)
        return learned.detach()

    def _train_modules(
        self,
        images: Float[Tensor, "b 3 h w"],
        posteriors: Sequence[Posterior],
        keys: Sequence[Key],
    ) -> Float[Tensor, "b d"]:
        """Learn a module for each style; returns the embeddings that they give."""
        pictures = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)
        embeds = self._embed(pictures).unflatten(0, (-1, 2))
        modules = [
            InversionModule(self._prompt.width, key.generator("module")).to(self.device)
            for key in keys
        ]

        def conditions(
            mirrored: Sequence[bool], generators: Sequence[torch.Generator]
        ) -> Float[Tensor, "b n d"]:
            words = []
            for module, own, mirror, generator in zip(
                modules, embeds, mirrored, generators, strict=True
            ):
                kept = tuple(mask.to(self.device) for mask in module.draw_kept(generator))
                words.append(module(own[int(mirror), None], kept))
            return self._prompt(torch.cat(words))

        parameters = [p for module in modules for p in module.live().values()]
        self._train(parameters, conditions, posteriors, keys)
        with torch.no_grad():
            return torch.cat([module(own[:1]) for module, own in zip(modules, embeds, strict=True)])

    def _train(
        self,
        parameters: Sequence[nn.Parameter],
        conditions: Conditions,
        posteriors: Sequence[Posterior],
        keys: Sequence[Key],
    ) -> None:
        training = self._training
        training.rows_per_call, training.after_call = self.rows_per_call, self.after_call
        training.train(parameters, conditions, posteriors, keys, self.unfinished)

    def _read(self, images: Float[Tensor, "b 3 h w"], keys: Sequence[Key]) -> Float[Tensor, "b d"]:
        """The embeddings that were given; the authors' modules make them of the pictures."""
        words = []
        for image, key in zip(images, keys, strict=True):
            learned = self._embeddings[_stem(key.style)]
            if isinstance(learned, InversionModule):
                with torch.no_grad():
                    learned = learned(self._embed(image[None]).cpu())[0]
            words.append(learned)
        return torch.stack(words).to(self.device)

    def _embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        pictures = to_uint8(images)
        if self.config.clip_input == "released":
            pictures = released_input(pictures)
        return self._clip(pictures).to(self.device)


def _stem(name: str) -> str:
    """An id without its suffix."""
    return str(PurePosixPath(name).with_suffix(""))


def open_inst(config: InSTConfig, runtime: Runtime) -> InSTTeacher:
    """Load the model, CLIP and given embeddings, and set InST up on them.

    Raises:
        InputError: one of them cannot be loaded, or they do not fit together.
    """
    prompt = clip = embeddings = towers_sha256 = None
    # What is small comes first, so that what is wrong shows early.
    if config.learned == "module":
        if not has_text_encoder(runtime.model):
            raise InputError(
                f'--model "{runtime.model}" has no text encoder, which the inversion module needs; '
                "give a Stable Diffusion 1.x, or --preset direct."
            )
        text = load_text_encoder(runtime.model, runtime.device)
        prompt = PromptWithStyle(text, config.prompt)
        digest = [weights_sha256(text.encoder)]
        if config.embeddings is not None:
            embeddings, files_sha256 = _load_embeddings(config.embeddings, prompt.width)
            digest.append(files_sha256)
        learned = [] if embeddings is None else embeddings.values()
        if embeddings is None or any(isinstance(x, InversionModule) for x in learned):
            clip = load_image_tower(config.clip)
            if clip.width != prompt.width:
                raise InputError(
                    f'--clip "{config.clip}" gives {clip.width} numbers and --model '
                    f'"{runtime.model}" has words of {prompt.width}; the inversion module needs '
                    "the same, as of Stable Diffusion 1.x and openai/clip-vit-large-patch14."
                )
            digest.append(weights_sha256(clip.model))
        towers_sha256 = hashlib.sha256("".join(digest).encode()).hexdigest()
    components = open_styleid(StyleIDConfig(), runtime).components
    return InSTTeacher(components, config, prompt, clip, embeddings, towers_sha256)


def _load_embeddings(
    folder: Path, width: int
) -> tuple[dict[str, InversionModule | Float[Tensor, " d"]], str]:
    """All embeddings in a folder and those below it, by path without suffix; and their hash."""
    digest = hashlib.sha256()
    embeddings = {}
    paths = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    for path in paths:
        name = _stem(path.relative_to(folder).as_posix())
        if name in embeddings:
            raise InputError(f"--embeddings {folder} holds several files {name}; expected one.")
        embeddings[name] = load_embedding(path, width)
        digest.update(name.encode() + path.read_bytes())
    if not paths:
        raise InputError(
            f"--embeddings {folder} holds no files of embeddings ({', '.join(SUFFIXES)})."
        )
    return embeddings, digest.hexdigest()
