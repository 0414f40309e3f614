"""Each picture is inverted once, and what is in the cache never changes a result."""

import numpy as np
import pytest
import torch

from teacher_torch import Inversion, StyleID, inversions
from teacher_torch.inversions import InversionCache


class CountingTeacher(StyleID):
    """Inverts a picture to its mean, and the whole batch to its size."""

    def __init__(self):
        self.unet = torch.empty(0)  # only its device matters
        self.inverted = []

    def invert(self, images):
        means = images.mean((1, 2, 3))
        self.inverted += means.tolist()
        batch = torch.full_like(means, len(images))
        return Inversion(torch.stack([means, batch])[:, :, None, None, None])


@pytest.fixture
def images():
    values = np.arange(10, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (10, 2, 2, 3)).copy()


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(inversions, "GROUP", 4)


def grey(inversion):
    """The pictures' grey levels."""
    return ((inversion.latents[0].flatten() + 1) * 127.5).round().int().tolist()


def test_each_picture_once(images):
    teacher = CountingTeacher()
    shards = [np.array([0, 5]), np.array([5, 9]), np.array([9, 0])]
    cache = InversionCache(teacher, images, np.concatenate(shards), shards)
    assert cache.pictures == 3
    for place, rows in enumerate(shards):
        assert grey(cache.get(rows, place)) == rows.tolist()
    assert len(teacher.inverted) == 3  # of the plan's pictures alone: 0, 5 and 9


def test_groups_follow_the_plan_and_not_what_is_left_of_it(images):
    """Else a continued dump would invert in other batches, and round differently."""
    shards = [np.arange(5), np.arange(5, 10)]
    plan = np.concatenate(shards)
    whole = InversionCache(CountingTeacher(), images, plan, shards)
    whole.get(shards[0], 0)
    continued = InversionCache(CountingTeacher(), images, plan, shards[1:])
    assert continued.pictures == 6  # 4 to 9: the second and third group
    batches = [cache.get(shards[1], place) for cache, place in ((whole, 1), (continued, 0))]
    torch.testing.assert_close(batches[0].latents, batches[1].latents, rtol=0, atol=0)
    assert batches[0].latents[1].flatten().tolist() == [4, 4, 4, 2, 2]


def test_what_no_later_shard_needs_is_dropped(images):
    teacher = CountingTeacher()
    shards = [np.arange(4), np.arange(4, 8)]
    cache = InversionCache(teacher, images, np.arange(8), shards)
    cache.get(shards[0], 0)
    cache.get(shards[1], 1)
    assert list(cache._groups) == [1]
