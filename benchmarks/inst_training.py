"""What learning a style costs InST: many styles in one batch against one style after the other.

Three ways train the same styles by the same random numbers, in turns: together; one after the other
with the pictures' latents kept, as this package does with `--together 1`; and one after the other
with the picture encoded anew in each step, as the authors' program does. All learn the condition
itself (the `direct` variant) and must be at the same one after two steps, or the benchmark fails.

On a CPU the time is processor time, which other load on the machine disturbs least; run it with
OMP_NUM_THREADS=1.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn

from teacher_torch.cost import build_components
from teacher_torch.inst import InSTConfig
from teacher_torch.inst.training import Training
from teacher_torch.latent_diffusion import Components, Posterior, encode, load_components
from teacher_torch.teacher import Key


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure seconds per style."""

    model: str = "mini"
    """Weights: "mini", a diffusers folder or a hub id; or "sd15" for untrained ones of the size of
    Stable Diffusion 1.5."""
    size: int = 256
    """Side of the pictures in pixels."""
    styles: int = 8
    """Styles that are trained."""
    steps: int = InSTConfig.direct().training_steps
    """Optimiser steps of a measurement. All cost the same, but each picture is also encoded once:
    too few steps would measure the autoencoder."""
    repeats: int = 3
    """Measurements of each way, alternating."""
    rows_per_call: int = 16
    """Most UNet rows a call."""
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


class EncodedAnew:
    """The latents of one style as the authors' program has them: encoded again in each step."""

    def __init__(self, components: Components, image: Float[Tensor, "3 h w"], key: Key):
        self._vae, self._image, self._key = components.vae, image, key
        self._step = 0

    def __iter__(self) -> Iterator[Posterior]:
        # The first number that a step draws says whether the picture is mirrored in it.
        mirrored = torch.rand(1, generator=self._key.generator("step", self._step)) < 0.5
        self._step += 1
        one = encode(self._vae, self._image.flip(-1)[None] if mirrored else self._image[None])
        yield Posterior(*(x.expand(2, -1, -1, -1) for x in one))


class Benchmark:
    """The three ways on one model."""

    def __init__(self, components: Components, config: BenchmarkConfig):
        self.components = components
        settings = replace(InSTConfig.direct(), training_steps=config.steps, batch=1)
        self.training = Training(
            components.unet, components.scheduler, settings, config.rows_per_call
        )
        generator = torch.Generator().manual_seed(0)
        noise = torch.rand(config.styles, 3, 8, 8, generator=generator) * 2 - 1
        self.images = nn.functional.interpolate(noise, (config.size, config.size), mode="bilinear")
        self.keys = [Key(0, style=str(i)) for i in range(config.styles)]

    def ways(self) -> dict[str, Callable[[], Float[Tensor, "s n d"]]]:
        """All three by name; the first is what the others are compared with."""
        return {
            f"{len(self.keys)} styles together": self.together,
            "one after the other": self.one_by_one,
            "one after the other, encoded in each step": self.encoded_anew,
        }

    def together(self) -> Float[Tensor, "s n d"]:
        """All styles in one batch."""
        return self._learn([self._kept(image) for image in self.images], self.keys)

    def one_by_one(self) -> Float[Tensor, "s n d"]:
        """Each style by itself."""
        return torch.cat(
            [
                self._learn([self._kept(image)], [key])
                for image, key in zip(self.images, self.keys, strict=True)
            ]
        )

    def encoded_anew(self) -> Float[Tensor, "s n d"]:
        """Each style by itself, encoded in each step."""
        return torch.cat(
            [
                self._learn(EncodedAnew(self.components, image, key), [key])
                for image, key in zip(self.images, self.keys, strict=True)
            ]
        )

    def _kept(self, image: Float[Tensor, "3 h w"]) -> Posterior:
        return encode(self.components.vae, torch.stack([image, image.flip(-1)]))

    def _learn(self, latents, keys: list[Key]) -> Float[Tensor, "s n d"]:
        start = self.components.null_text_embedding.float().expand(len(keys), -1, -1)
        condition = nn.Parameter(start.clone())
        self.training.train([condition], lambda *_: condition, latents, keys)
        return condition.detach().cpu()


def main(config: BenchmarkConfig) -> None:
    """Print a table."""
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    load = build_components if config.model == "sd15" else load_components
    components = load(config.model, device, dtype)
    ways = Benchmark(components, config).ways()
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    # Rounding grows with the steps, so what is learned is compared early; this also sets things up.
    early = Benchmark(components, replace(config, steps=2)).ways()
    learned = {name: run() for name, run in early.items()}
    for repeat in range(config.repeats):
        for name, run in ways.items():
            start = clock()
            run()  # on the CPU at its end, so the device has finished
            seconds[name].append((clock() - start) / config.styles)
            print(f"{repeat + 1}: {name}: {seconds[name][-1]:.2f} s per style", file=sys.stderr)
    first = next(iter(learned.values()))
    moved = (first - components.null_text_embedding.float().cpu()).abs().mean()
    apart = max((other - first).abs().mean() for other in learned.values())
    # Adam makes a whole step of a gradient that is rounding alone; those of another style or of
    # other noises would be as far apart as they have moved.
    if not apart < 0.25 * moved:
        raise SystemExit(f"the ways disagree by {apart / moved:.0%} of what is learned")

    print(
        f"{config.model}, {config.size} px, {config.steps} steps, {config.dtype}, {config.device}; "
        f"torch {torch.__version__}, {platform.machine()}; {config.repeats} alternating runs, "
        "medians; after two steps, what is learned agrees to "
        f"{float(apart / moved):.1e} of its way\n"
    )
    print("| way | s per style | s per step and style | times as long |")
    print("| --- | ---: | ---: | ---: |")
    least = next(iter(seconds.values()))
    for name, of_way in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(of_way, least, strict=True))
        median = statistics.median(of_way)
        print(f"| {name} | {median:.2f} | {median / config.steps:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
