"""Following a run: speed, share of the device's peak, and that the figures remain numbers."""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import jax
import optax
from tqdm import tqdm

from student_jax.training.config import TrainConfig
from student_jax.training.metrics import MetricWriters
from student_jax.training.train_state import Terms
from triplets import InputError

# Dense bfloat16, in FLOP/s, by `jax.Device.device_kind`, from the makers' data sheets.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v3": 123e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


class TrainingError(InputError):
    """Training cannot go on; the message names the step, and what remains."""


def peak_flops(peak_tflops: float | None) -> float | None:
    """Peak rate of all devices together, or None when it is neither given nor known."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    if peak_tflops is not None:
        peak = peak_tflops * 1e12
    return None if peak is None else peak * jax.device_count()


class Progress:
    """Watches the steps of a run; a context manager with a progress bar.

    A step's figures are looked at when the next step has been dispatched, so that the device never
    waits for them, and none is overlooked. Speeds leave out compilation and `paused` time.

    Args:
        writer: gets the figures of every `config.log_every`-th step.
        schedule: learning rate by step.
        flops: of one step, and `peak`, per second; for the model FLOPs utilisation (Chowdhery et
            al., "PaLM", 2022, appendix B), which is left out without them.
        visible: show the bar.
    """

    def __init__(
        self,
        config: TrainConfig,
        start: int,
        writer: MetricWriters,
        schedule: optax.Schedule,
        flops: float | None = None,
        peak: float | None = None,
        visible: bool = True,
    ):
        self._config, self._writer = config, writer
        self._schedule = jax.jit(schedule)  # its constants would otherwise be copied at every call
        self._flops, self._peak = flops, peak
        self._pending: deque[tuple[int, Sequence[str], Terms]] = deque()
        self._bar = tqdm(
            total=config.steps, initial=start, unit="step", desc="training", disable=not visible
        )
        self._clock: float | None = None  # starts after the first step, which compiles
        self._logged = (0, 0.0)  # steps and seconds at the last line of figures
        self.steps, self.seconds = 0, 0.0
        """Timed so far."""
        self.terms: dict[str, float] = {}
        """Figures of the last step."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def dispatched(self, step: int, records: Sequence[str], terms: Terms) -> None:
        """Take note of a step that the device has been given; read the figures of the one before.

        Raises:
            TrainingError: a figure of that step is not a finite number.
        """
        self._pending.append((step, records, terms))
        if len(self._pending) > 1:
            self._look()

    def settle(self) -> None:
        """Wait for the device, and look at all steps given to it; raises as `dispatched`."""
        while self._pending:
            self._look()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Settle, and do not count the time of the block."""
        self.settle()
        yield
        self._clock = time.perf_counter()

    def _look(self) -> None:
        step, records, terms = self._pending.popleft()
        self.terms = {name: float(value) for name, value in jax.device_get(terms).items()}
        wrong = [f"{k} {v}" for k, v in self.terms.items() if not math.isfinite(v)]
        if wrong:
            raise TrainingError(
                f"step {step} gave {' and '.join(wrong)} on the batch {', '.join(records)}."
            )
        now = time.perf_counter()
        if self._clock is not None:
            self.steps += 1
            self.seconds += now - self._clock
        self._clock = now
        if step % self._config.log_every == 0:
            rate = jax.device_get(self._schedule(jax.device_put(step - 1)))
            values = self.terms | {"learning_rate": float(rate)}
            speed = self._speed()
            self._writer.scalars(step, values | speed)
            self._bar.set_postfix_str(", ".join(_short(values | speed)))
        self._bar.update()

    @property
    def images_per_s(self) -> float | None:
        """Over all steps timed so far, and None before the second one."""
        return self.steps * self._config.batch_size / self.seconds if self.steps else None

    def _speed(self) -> dict[str, float]:
        steps, seconds = self.steps - self._logged[0], self.seconds - self._logged[1]
        self._logged = (self.steps, self.seconds)
        if not steps:
            return {}
        speed = {"images_per_s": steps * self._config.batch_size / seconds}
        if self._flops and self._peak:
            speed["mfu"] = steps * self._flops / seconds / self._peak
        return speed


def _short(values: dict[str, float]) -> Iterator[str]:
    """What fits beside a progress bar."""
    for name, value in values.items():
        if name == "mfu":
            yield f"MFU {value:.0%}"
        elif name == "images_per_s":
            yield f"{value:.1f} images/s"
        elif name == "learning_rate":
            yield f"rate {value:.1e}"
        else:
            yield f"{name} {value:.4f}"
