"""What a pair costs attention distillation: tiles that share features against a plain loop.

The plain loop does what the authors' program does for each pair: it encodes both pictures, computes
in every step the style's features and the content's anew, each in a call of one row, then takes the
losses of one stylised row and its gradient, and decodes the result. Tiles are prepared and stylised
as a dump does it. Both run the published method, with fewer steps, and must give the same pictures,
or the benchmark fails.

On a CPU the time is processor time, which other load on the machine disturbs least; run it with
OMP_NUM_THREADS=1.
"""

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import tyro
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from teacher import pictures
from torch import Tensor

from teacher_torch.attention_distillation import (
    AttentionDistillationConfig,
    AttentionDistillationTeacher,
)
from teacher_torch.cost import build_components
from teacher_torch.latent_diffusion import Components, decode, encode, load_components
from teacher_torch.teacher import Key

TOLERANCE = 0.05
"""Share of what the distillation changes by which the ways may differ in the mean. Rounding turns
signs of L1 gradients near zero, and Adam makes whole steps of them."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure seconds per pair."""

    model: str = "mini"
    """Weights: "mini", a diffusers folder or a hub id; or "sd15" for untrained ones of the size of
    Stable Diffusion 1.5."""
    size: int = 128
    """Side of the pictures in pixels."""
    steps: int = 10
    """Timesteps. All cost the same, but pictures are also encoded and decoded once."""
    tiles: tuple[int, ...] = (4, 8)
    """Contents, and styles, of the tiles."""
    baseline_pairs: int = 2
    """Pairs in a measurement of the plain loop, whose cost per pair does not depend on them."""
    repeats: int = 3
    """Measurements of each way, alternating."""
    rows_per_call: int = 16
    """Most UNet rows of a tile's call."""
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"


class Features(NamedTuple):
    """What one layer makes of one picture; [1 k n d] each."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor


class OnePairAtATime:
    """The published method as a plain loop."""

    def __init__(self, components: Components, config: AttentionDistillationConfig):
        self.components, self.config = components, config
        self.features: list[Features] = []

    def stylise(
        self, content: Float[Tensor, "1 3 h w"], style: Float[Tensor, "1 3 h w"]
    ) -> Float[Tensor, "1 3 h w"]:
        """Pictures in [-1, 1] -> their combination."""
        unet, vae, scheduler, _ = self.components
        layers = [
            unet.up_blocks[i // 3].attentions[i % 3].transformer_blocks[0].attn1
            for i in self.config.layers
        ]
        before = [layer.processor for layer in layers]
        for layer in layers:
            layer.set_processor(self._attend)
        clean, of_style = (encode(vae, image).mean.clone() for image in (content, style))
        latents = clean.clone().requires_grad_()
        optimiser = torch.optim.Adam([latents], self.config.learning_rate)
        scheduler.set_timesteps(self.config.num_steps)
        for timestep in scheduler.timesteps.tolist():
            with torch.no_grad():
                told = self._predict(of_style, timestep)
                kept = self._predict(clean, timestep)
            loss = self._loss(self._predict(latents, timestep), told, kept)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        for layer, processor in zip(layers, before, strict=True):
            layer.set_processor(processor)
        return decode(vae, latents.detach())

    def _predict(self, latents: Float[Tensor, "1 c h w"], timestep: int) -> list[Features]:
        """Features of all layers."""
        unet, text = self.components.unet, self.components.null_text_embedding
        self.features = []
        unet(latents.to(unet.dtype), timestep, text)
        return self.features

    def _attend(self, attn: Attention, hidden_states: Tensor, *_, **__) -> Tensor:
        query, key, value = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        output = F.scaled_dot_product_attention(query, key, value)
        self.features.append(Features(query, key, value, output))
        return attn.to_out[0](output.transpose(1, 2).flatten(2))

    def _loss(self, own: list[Features], told: list[Features], kept: list[Features]) -> Tensor:
        total = torch.zeros((), device=own[0].query.device)
        for result, style, content in zip(own, told, kept, strict=True):
            target = F.scaled_dot_product_attention(result.query, style.key, style.value)
            total = total + F.l1_loss(result.output.float(), target.detach().float())
            queries = F.l1_loss(result.query.float(), content.query.float())
            total = total + self.config.content_weight * queries
        return total


def tile(
    components: Components,
    settings: AttentionDistillationConfig,
    config: BenchmarkConfig,
    side: int,
) -> Callable[[], Float[Tensor, "p 3 h w"]]:
    """Prepare `side` contents and styles, stylise all their pairs; the diagonal comes first."""
    teacher = AttentionDistillationTeacher(components, settings)
    teacher.rows_per_call = config.rows_per_call
    images = dict(zip(("content", "style"), pictures(side, config.size), strict=True))
    names = [str(i) for i in range(side)]
    pairs = torch.tensor([(i, (i + k) % side) for k in range(side) for i in range(side)])
    keys = [Key(0, str(int(i)), str(int(j))) for i, j in pairs]

    def run() -> Tensor:
        content, style = (
            teacher.prepare(role, images[role], [Key(0, **{role: name}) for name in names])
            for role in ("content", "style")
        )
        return torch.stack(list(teacher.stylise(content, style, pairs, keys)))

    return run


def plain_loop(
    components: Components, settings: AttentionDistillationConfig, config: BenchmarkConfig
) -> Callable[[], Float[Tensor, "p 3 h w"]]:
    """Stylise the first pairs of the diagonal one after another."""
    contents, styles = pictures(config.baseline_pairs, config.size)
    plain = OnePairAtATime(components, settings)

    def run() -> Tensor:
        pairs = zip(contents.split(1), styles.split(1), strict=True)
        return torch.cat([plain.stylise(*pair) for pair in pairs])

    return run


def main(config: BenchmarkConfig) -> None:
    """Print a table."""
    device, dtype = torch.device(config.device), getattr(torch, config.dtype)
    load = build_components if config.model == "sd15" else load_components
    components = load(config.model, device, dtype)
    settings = replace(AttentionDistillationConfig.paper(), num_steps=config.steps)
    ways = {f"tiles of {n} x {n}": tile(components, settings, config, n) for n in config.tiles}
    ways["one pair at a time"] = plain_loop(components, settings, config)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for repeat in range(config.repeats):
        for name, run in ways.items():
            start = clock()
            results[name] = run().cpu()
            seconds[name].append((clock() - start) / len(results[name]))
            print(f"{repeat + 1}: {name}: {seconds[name][-1]:.3f} s per pair", file=sys.stderr)

    contents, _ = pictures(config.baseline_pairs, config.size)
    start = decode(components.vae, encode(components.vae, contents).mean).cpu()
    first = [result[: config.baseline_pairs] for result in results.values()]
    changed = (first[-1] - start).abs().mean()
    apart = max((result - first[-1]).abs().mean() for result in first)
    if not apart < TOLERANCE * changed:
        raise SystemExit(f"the ways disagree by {apart / changed:.0%} of what the pictures change")
    print(
        f"{config.model}, {config.size} px, {config.steps} steps, {config.dtype}, {config.device}; "
        f"torch {torch.__version__}, {platform.machine()}; {config.repeats} alternating runs, "
        f"medians; pictures agree to {apart / changed:.1%} of what they change\n"
    )
    print("| way | s per pair | s per step and pair | times as long |")
    print("| --- | ---: | ---: | ---: |")
    least = seconds[list(ways)[-2]]
    for name, of_way in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(of_way, least, strict=True))
        median = statistics.median(of_way)
        print(f"| {name} | {median:.2f} | {median / config.steps:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
