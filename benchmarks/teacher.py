"""What a stylised pair costs: joint sampling of a grid against one pair at a time.

The baselines run the same algorithm (the "port" convention) as the authors' port does: content and
style are inverted for every pair, queries, keys and values of all steps are kept, and hooks behind
the network's own attention compute explicit score matrices, once more in the inversions and twice
more in sampling. One baseline decodes every intermediate latent, as the port does, the other only
the result. The weights are random: speed does not depend on them. All ways must give the same
pictures, or the benchmark fails.

On a CPU every measurement is a process of its own, and its time is processor time, which another
load on the machine disturbs least; run it with OMP_NUM_THREADS=1, on Linux.
"""

import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import tyro
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from teacher_torch import StyleID, StyleIDConfig
from teacher_torch.cost import mini_networks, stable_diffusion_15
from teacher_torch.latent_diffusion import Components
from teacher_torch.mini.networks import build_scheduler
from teacher_torch.styleid.ddim import adain
from triplets.memory import PeakGrowth

MIB = 1024**2


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure seconds, UNet rows and memory per pair."""

    model: Literal["mini", "sd15"] = "mini"
    """Size of the networks: of the mini teacher, or of Stable Diffusion 1.5."""
    size: int = 128
    """Side of the pictures in pixels."""
    steps: int = 5
    """DDIM steps; the ratios hardly depend on them, since all ways take them alike."""
    grids: tuple[int, ...] = (4, 8)
    """Contents, and styles, of the grids."""
    baseline_pairs: int = 2
    """Pairs in a measurement of the baselines, whose cost per pair does not depend on the grid."""
    repeats: int = 3
    """Measurements of each way, alternating."""
    baselines: bool = True
    """Off: the joint grid alone."""
    rows_per_call: int = 16
    """Most UNet rows a call."""
    device: str = "cpu"
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compile: bool = False
    """torch.compile of the UNet in joint sampling; a first run, which compiles, is not measured."""
    peak_tflops: float | None = None
    """Peak rate of the device in this dtype, to print the share that is reached."""


class Measurement(NamedTuple):
    """One run of one way."""

    seconds: float
    pairs: int
    rows: int
    """UNet rows."""
    peak_bytes: int
    """Memory beyond what stood there before: the process's on a CPU, torch's on a GPU."""
    picture: Tensor
    """float [3 h w]: the first pair."""


class OnePairAtATime:
    """StyleID in the manner of the authors' port: plain, and with all features kept."""

    def __init__(self, components: Components, config: StyleIDConfig, decode_all: bool):
        self.teacher = StyleID(*components, config)
        self.decode_all = decode_all
        self.features: dict[tuple, tuple[Tensor, Tensor, Tensor]] = {}
        self.kind, self.step = "content", 0
        unet = components.unet
        self.attentions = [
            unet.up_blocks[i // 3].attentions[i % 3].transformer_blocks[0].attn1
            for i in config.injection_layers
        ]

    @torch.inference_mode()
    def stylise(self, content: Tensor, style: Tensor) -> Tensor:
        """float [1 3 h w] in [-1, 1] each -> their combination."""
        handles = [attention.register_forward_hook(self._hook) for attention in self.attentions]
        try:
            noise = [
                self._invert(kind, image)
                for kind, image in (("content", content), ("style", style))
            ]
            return self._sample(adain(*noise, eps=1e-4))
        finally:
            for handle in handles:
                handle.remove()
            self.features.clear()

    def _invert(self, kind: str, image: Tensor) -> Tensor:
        schedule, self.kind = self.teacher.schedule, kind
        latents, levels = self.teacher.encode(image), schedule.inversion_levels
        for self.step, timestep in enumerate(schedule.timesteps):
            output = self.teacher._predict(latents, timestep)
            latents, x0 = schedule.step(latents, output, levels[self.step], levels[self.step + 1])
            if self.decode_all:
                self.teacher.decode(x0)
        return latents

    def _sample(self, latents: Tensor) -> Tensor:
        schedule, self.kind = self.teacher.schedule, "stylised"
        levels = schedule.sampling_levels
        for self.step in range(schedule.sampling_start, -1, -1):
            output = self.teacher._predict(latents, schedule.timesteps[self.step])
            latents, x0 = schedule.step(latents, output, levels[self.step + 1], levels[self.step])
            if self.decode_all and self.step:
                self.teacher.decode(x0)
        return self.teacher.decode(x0)

    def _hook(self, attention, arguments: tuple, output: Tensor) -> Tensor:
        query, key, value = (
            attention.head_to_batch_dim(projection(arguments[0]))
            for projection in (attention.to_q, attention.to_k, attention.to_v)
        )
        result = _attend(attention, query, key, value)
        if self.kind == "stylised":
            gamma, temperature = self.teacher.config.gamma, self.teacher.config.temperature
            content_query = self.features["content", attention, self.step][0]
            _, key, value = self.features["style", attention, self.step]
            merged = gamma * content_query + (1 - gamma) * query
            result = _attend(attention, temperature * merged, key, value)
        else:
            self.features[self.kind, attention, self.step] = query, key, value
        return attention.to_out[1](attention.to_out[0](attention.batch_to_head_dim(result)))


def _attend(attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over an explicit matrix of scores."""
    return torch.bmm(attention.get_attention_scores(query, key), value)


def build(config: BenchmarkConfig) -> Components:
    """Networks of the chosen size with random weights."""
    torch.manual_seed(0)
    unet, vae, text = mini_networks() if config.model == "mini" else stable_diffusion_15()
    null_text = torch.randn(text.shape)
    dtype = getattr(torch, config.dtype)
    for module in (unet, vae):
        module.to(config.device).eval().requires_grad_(False)
        if dtype != torch.float32:
            module.to(dtype)
    vae.to(memory_format=torch.channels_last)
    return Components(unet, vae, build_scheduler(), null_text.to(config.device, dtype))


def joint_grid(components: Components, settings: StyleIDConfig, config: BenchmarkConfig, side: int):
    """Invert `side` contents and styles, stylise all their pairs together."""
    contents, styles = pictures(side, config.size)
    teacher = StyleID(*components, settings, rows_per_call=config.rows_per_call)
    pairs = torch.cartesian_prod(torch.arange(side), torch.arange(side))

    def run() -> tuple[int, Tensor]:
        content, style = teacher.invert(contents), teacher.invert(styles)
        return len(pairs), teacher.stylise_pairs(content, style, pairs)[0]

    return run


def one_by_one(
    components: Components, settings: StyleIDConfig, config: BenchmarkConfig, decode_all: bool
):
    """Stylise the first pairs of the grid one after another."""
    contents, styles = pictures(max(config.baseline_pairs, 1), config.size)
    plain = OnePairAtATime(components, settings, decode_all)

    def run() -> tuple[int, Tensor]:
        results = [
            plain.stylise(contents[:1], style[None]) for style in styles[: config.baseline_pairs]
        ]
        return len(results), results[0][0]

    return run


def pictures(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Smooth random contents and styles; the first ones are the same whatever the count."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, 2, 3, 8, 8, generator=generator) * 2 - 1
    smooth = torch.nn.functional.interpolate(noise.flatten(0, 1), (size, size), mode="bilinear")
    contents, styles = smooth.unflatten(0, (count, 2)).unbind(1)
    return contents, styles


def measure(run: Callable, components: Components) -> Measurement:
    """One run: on a CPU in a process of its own, on another device here."""
    if components.unet.device.type != "cpu":
        return _measure_here(run, components)
    reader, writer = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        os.close(reader)
        result = _measure_here(run, components)
        with os.fdopen(writer, "w") as file:
            json.dump(result._replace(picture=result.picture.tolist()), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        result = Measurement(*json.load(file))
    os.waitpid(process, 0)
    return result._replace(picture=torch.tensor(result.picture))


def _measure_here(run: Callable, components: Components) -> Measurement:
    rows = 0

    def count(module, arguments):
        nonlocal rows
        rows += len(arguments[0])

    handle = components.unet.register_forward_pre_hook(count)
    device = components.unet.device
    on_cpu = device.type == "cpu"
    gc.collect()
    clock = time.process_time if on_cpu else time.perf_counter
    if not on_cpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    with PeakGrowth() as grown:
        start = clock()
        pairs, picture = run()
        picture = picture.float().cpu()
        seconds = clock() - start
    handle.remove()
    peak_bytes = grown.bytes if on_cpu else torch.cuda.max_memory_allocated() - before
    return Measurement(seconds, pairs, rows, peak_bytes, picture)


def flops_per_pair(run: Callable) -> float:
    """Floating-point operations of a run per pair, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        pairs, _ = run()
    return counter.get_total_flops() / pairs


def main(config: BenchmarkConfig) -> None:
    """Print a table."""
    if config.device == "cpu":
        torch.set_num_threads(1)  # processes are forked, which threads would not survive
    components = build(config)
    settings = StyleIDConfig(num_steps=config.steps, convention="port")
    ways = {f"joint {n} x {n}": joint_grid(components, settings, config, n) for n in config.grids}
    joint = list(ways)
    if config.baselines:
        for name, decode_all in (("one by one", False), ("one by one, all decoded", True)):
            ways[name] = one_by_one(components, settings, config, decode_all)
    if config.compile:
        components.unet.compile()
    if config.device != "cpu":
        for run in ways.values():  # the first run chooses algorithms, or compiles
            run()
    results: dict[str, list[Measurement]] = {name: [] for name in ways}
    for repeat in range(config.repeats):
        for name, run in ways.items():
            results[name].append(measure(run, components))
            m = results[name][-1]
            print(f"{repeat + 1}: {name}: {m.seconds / m.pairs:.3f} s/pair", file=sys.stderr)
    reference = results[joint[0]][0].picture
    worst = max((m.picture - reference).abs().max().item() for ms in results.values() for m in ms)
    # Rounding of other batches and other attention kernels, amplified over the steps.
    tolerance = 2e-3 if config.dtype == "float32" else 0.5
    if not worst < tolerance:
        raise SystemExit(f"the ways disagree by {worst}: not the same algorithm")

    print(
        f"{config.model} networks, {config.size} px, {config.steps} + {config.steps} steps, "
        f"{config.dtype}, {config.device}; torch {torch.__version__}, {platform.machine()}; "
        f"{config.repeats} alternating runs, medians; pictures agree to {worst:.1e}\n"
    )
    print(f"| way | UNet rows/pair | s/pair | times {joint[-1]} | peak memory (MiB) |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, measured in results.items():
        ratios = [
            (m.seconds / m.pairs) / (own.seconds / own.pairs)
            for m, own in zip(measured, results[joint[-1]], strict=True)
        ]
        cells = [
            name,
            f"{measured[0].rows / measured[0].pairs:.1f}",
            f"{median_seconds(measured):.3f}",
            f"{statistics.median(ratios):.2f}",
            f"{statistics.median(m.peak_bytes for m in measured) / MIB:.0f}",
        ]
        print(f"| {' | '.join(cells)} |")
    for name in joint if config.peak_tflops else ():
        rate = flops_per_pair(ways[name]) / median_seconds(results[name]) / 1e12
        print(
            f"\n{name}: {3600 / median_seconds(results[name]):.0f} pairs an hour, "
            f"{rate:.3f} TFLOP/s, {100 * rate / config.peak_tflops:.0f} % of the peak"
        )


def median_seconds(measured: list[Measurement]) -> float:
    """Of a pair."""
    return statistics.median(m.seconds / m.pairs for m in measured)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
