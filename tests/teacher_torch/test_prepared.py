"""Each picture is prepared once, and what is kept in memory never changes a result."""

import tempfile

import fsspec
import numpy as np
import pytest
import torch

from teacher_torch.devices import MemoryNeed
from teacher_torch.prepared import PreparedPictures, PreparedStore, prepared_store
from teacher_torch.teacher import Key, Prepared, Teacher
from triplets import DatasetError, ImageSet, TripletWriter


class CountingTeacher(Teacher):
    """Prepares a picture as its mean, and the whole batch as its size."""

    size_px = 2

    def __init__(self):
        self.prepared = []
        self.keys = []

    def group(self, role):
        return 4

    def prepare(self, role, images, keys):
        means = images.mean((1, 2, 3))
        self.prepared += means.tolist()
        self.keys += keys
        return Prepared({"mean": means, "batch": torch.full_like(means, len(images))})

    def preparation_work(self, role, pictures):
        return 10 * pictures

    def settings(self):
        return {}

    def stylise(self, contents, styles, pairs, keys):
        raise NotImplementedError

    def work(self, contents, styles, pairs):
        return 0

    def memory(self, size_px, contents, styles, pairs):
        return MemoryNeed(0, 0, 0, 0)


@pytest.fixture
def pictures():
    values = np.arange(10, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(values, (10, 2, 2, 3)).copy()
    return ImageSet(images, [f"{i}.png" for i in range(10)], [(2, 2)] * 10)


def prepared_pictures(teacher, pictures, plan, shards):
    return PreparedPictures(teacher, "content", pictures, 7, plan, shards)


def grey(prepared):
    """The pictures' grey levels."""
    return ((prepared.tensors["mean"] + 1) * 127.5).round().int().tolist()


def test_each_picture_once(pictures):
    teacher = CountingTeacher()
    shards = [np.array([0, 5]), np.array([5, 9]), np.array([9, 0])]
    cache = prepared_pictures(teacher, pictures, np.concatenate(shards), shards)
    assert cache.work == 10 * 3
    for index, rows in enumerate(shards):
        assert grey(cache.get(rows, index)) == rows.tolist()
    assert len(teacher.prepared) == 3  # of the plan's pictures alone: 0, 5 and 9
    assert teacher.keys == [Key(7, content=f"{i}.png") for i in (0, 5, 9)]


def test_groups_follow_the_plan_and_not_what_is_left_of_it(pictures):
    """Else a continued dump would prepare other batches, and round differently."""
    shards = [np.arange(5), np.arange(5, 10)]
    plan = np.concatenate(shards)
    whole = prepared_pictures(CountingTeacher(), pictures, plan, shards)
    whole.get(shards[0], 0)
    continued = prepared_pictures(CountingTeacher(), pictures, plan, shards[1:])
    assert continued.work == 10 * 6  # 4 to 9: the second and third group
    batches = [cache.get(shards[1], index) for cache, index in ((whole, 1), (continued, 0))]
    for name in ("mean", "batch"):
        torch.testing.assert_close(
            batches[0].tensors[name], batches[1].tensors[name], rtol=0, atol=0
        )
    assert batches[0].tensors["batch"].tolist() == [4, 4, 4, 2, 2]


def test_what_no_later_shard_needs_is_dropped(pictures):
    teacher = CountingTeacher()
    shards = [np.arange(4), np.arange(4, 8)]
    cache = prepared_pictures(teacher, pictures, np.arange(8), shards)
    cache.get(shards[0], 0)
    cache.get(shards[1], 1)
    assert list(cache._groups) == [1]


class ResumingTeacher(CountingTeacher):
    """Adds up its pictures one after the other, and keeps in a file how far it is."""

    persistent = ("content",)

    def __init__(self, fails_at=None):
        super().__init__()
        self.fails_at = fails_at

    def prepare(self, role, images, keys):
        state = self.unfinished / "done"
        done = int(state.read_text()) if state.exists() else 0
        for k in range(done, len(images)):
            if k == self.fails_at:
                raise KeyboardInterrupt
            self.prepared.append(k)
            state.write_text(str(k + 1))
        return super().prepare(role, images, keys)


def make_writer(root, pictures):
    pairs = np.stack([np.arange(10), np.zeros(10, int)], axis=1)
    styles = ImageSet(pictures.images[:1], ["style.png"], [(2, 2)])
    return TripletWriter(root, contents=pictures, styles=styles, pairs=pairs, shard_size=10)


def test_groups_in_a_bucket(pictures, tmp_path, monkeypatch):
    """Published with the description last, read by another process, and dropped."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = prepared_store(make_writer("memory://bucket/prepared-test", pictures))
    rows, teacher = np.arange(10), ResumingTeacher()

    def get(teacher):
        return PreparedPictures(teacher, "content", pictures, 7, rows, [rows], store).get(rows, 0)

    with pytest.raises(KeyboardInterrupt):
        get(ResumingTeacher(fails_at=3))
    assert not store.holds("content-00000")
    assert grey(get(teacher)) == rows.tolist()
    assert teacher.prepared[0] == 3  # on this machine the state of the first attempt is found
    assert grey(get(ResumingTeacher(fails_at=0))) == rows.tolist()
    memory = fsspec.filesystem("memory")
    folder = "/bucket/prepared-test/prepared/content-00001"
    assert sorted(name.rpartition("/")[2][:8] for name in memory.find(folder)) == [
        "prepared",
        "tensors-",
    ]
    with pytest.raises(DatasetError, match="damaged or belongs to other pictures"):
        store.load("content-00001", ["x"])
    store.drop("content-00001")
    assert not store.holds("content-00001") and not memory.find(folder)
    memory.store.clear()


def test_an_unfinished_group_goes_on(pictures, tmp_path):
    """Its state is found again, never used as if prepared, and removed when the group is there."""
    writer = make_writer(tmp_path / "out", pictures)
    store, rows = PreparedStore(writer), np.arange(10)

    def get(teacher):
        return PreparedPictures(teacher, "content", pictures, 7, rows, [rows], store).get(rows, 0)

    with pytest.raises(KeyboardInterrupt):
        get(broken := ResumingTeacher(fails_at=3))
    assert broken.prepared == [0, 1, 2] and not store.holds("content-00000")
    state = writer.root / "prepared" / ".content-00000.unfinished"
    assert state.is_dir()
    assert grey(get(continued := ResumingTeacher())) == rows.tolist()
    assert continued.prepared[0] == 3
    names = ["content-00000", "content-00001", "content-00002"]
    assert sorted(path.name for path in (writer.root / "prepared").iterdir()) == names
    # Killed after a group was published, before its state was removed.
    state.mkdir()
    get(ResumingTeacher(fails_at=0))
    assert not state.exists()
