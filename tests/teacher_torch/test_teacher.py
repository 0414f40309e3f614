"""The words that teachers and the dump share: keys, prepared pictures, registered names."""

import pytest
import torch

from teacher_torch import TEACHERS, StyleIDConfig, Teacher, register_teacher
from teacher_torch.styleid import StyleIDTeacher
from teacher_torch.teacher import Key, Prepared


def draw(key, *purpose):
    return torch.randn(4, generator=key.generator(*purpose)).tolist()


def test_random_numbers_belong_to_seed_pictures_and_purpose():
    key = Key(0, "photo.jpg", "painting.jpg")
    assert draw(key, "noise", 3) == draw(Key(0, "photo.jpg", "painting.jpg"), "noise", 3)
    others = [
        draw(Key(1, "photo.jpg", "painting.jpg"), "noise", 3),
        draw(Key(0, "other.jpg", "painting.jpg"), "noise", 3),
        draw(Key(0, "photo.jpg", "other.jpg"), "noise", 3),
        draw(Key(0, style="photo.jpg"), "noise", 3),
        draw(Key(0, content="photo.jpg"), "noise", 3),
        draw(key, "noise", 4),
        draw(key, "noise"),
        draw(key, "crops", 3),
    ]
    assert len({tuple(numbers) for numbers in [draw(key, "noise", 3), *others]}) == 9


def test_draws_never_change():
    """Else a dump that was started by an earlier version would continue with other numbers."""
    draws = draw(Key(7, "a", "b"), "noise")
    assert draws == pytest.approx([-0.505323, -0.281845, 1.159897, -0.484355], abs=1e-6)


def test_prepared_pictures_are_batches(tmp_path):
    prepared = Prepared({"a": torch.arange(6.0).view(3, 2), "b": torch.arange(3)})
    assert len(prepared) == 3
    assert prepared[1].tensors["a"].tolist() == [[2, 3]] and len(prepared[1]) == 1
    joined = Prepared.cat([prepared[2], prepared])
    assert joined.tensors["b"].tolist() == [2, 0, 1, 2]
    assert prepared.to("meta").tensors["a"].device.type == "meta"
    joined.save(tmp_path / "tensors.safetensors")
    loaded = Prepared.load(tmp_path / "tensors.safetensors")
    assert loaded.tensors.keys() == {"a", "b"}
    torch.testing.assert_close(loaded.tensors["a"], joined.tensors["a"], rtol=0, atol=0)
    with pytest.raises(FileExistsError):
        joined.save(tmp_path / "tensors.safetensors")


@pytest.mark.parametrize("tensors", [{}, {"a": torch.zeros(2), "b": torch.zeros(3)}])
def test_prepared_pictures_that_do_not_fit_together(tensors):
    with pytest.raises(ValueError, match="expected tensors of one length"):
        Prepared(tensors)


def test_styleid_is_a_teacher(components):
    teacher = StyleIDTeacher(components, StyleIDConfig(num_steps=3))
    assert isinstance(teacher, Teacher)
    assert (teacher.size_px, teacher.side_multiple, teacher.tile) == (64, 64, (8, 8))
    assert teacher.preparation_work("content", 5) == 3 * 5
    assert teacher.work(2, 3, 6) == 2 * (2 + 3 + 6)  # the paper's sampling has a step less
    assert TEACHERS["styleid"].presets == {
        "paper": StyleIDConfig.paper(),
        "port": StyleIDConfig.port(),
    }


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match='there is a teacher "styleid" already'):
        register_teacher("styleid", StyleIDConfig, lambda config, runtime: None)
