import pytest
import torch

from teacher_torch.memory import GIB, MemoryNeed, free_bytes, is_out_of_memory

CPU = torch.device("cpu")


def test_need_of_the_tiny_model(components):
    need = MemoryNeed.estimate(
        components.unet,
        components.vae,
        64,
        layers=(6, 9),
        num_steps=3,
        contents=2,
        styles=3,
        pairs=4,
    )
    # 8 x 8 latents; layer 6 sees a quarter of its 64 tokens, layer 9 all; 8 channels, float32.
    # Contents leave queries, styles keys and values.
    features = (16 + 64) * 8 * 4 * (2 + 2 * 3)
    latents = ((2 + 3) * (3 + 1) + 4 * 4) * 4 * 64 * 4
    assert need.step == features + latents
    parameters = [*components.unet.parameters(), *components.vae.parameters()]
    assert need.weights == sum(4 * p.numel() for p in parameters)
    assert need.total(5) == need.weights + max(need.step + 5 * need.row, need.picture)


@pytest.mark.parametrize(
    ("total", "rows"),
    [(100, 0), (100 + 50 + 10, 1), (100 + 50 + 39, 2), (100 + 50 + 40, 4), (10_000, 16)],
)
def test_rows_a_call_are_the_largest_power_of_two_that_fits(total, rows):
    assert MemoryNeed(weights=100, step=50, row=10, picture=60).rows_within(total, CPU) == rows


def test_free_memory_of_this_machine():
    assert GIB / 100 < free_bytes(CPU) < 2**50


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_a_full_memory(error, expected):
    assert is_out_of_memory(error) is expected
