import pytest
import torch

from teacher_torch.devices import GIB, MemoryNeed, free_bytes, is_out_of_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("total", "rows"),
    [(100, 0), (100 + 50 + 10, 1), (100 + 50 + 39, 2), (100 + 50 + 40, 4), (10_000, 16)],
)
def test_rows_per_call_are_the_largest_power_of_two_that_fits(total, rows):
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
