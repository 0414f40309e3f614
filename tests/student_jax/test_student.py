"""The registry of students, and their configurations as JSON."""

import dataclasses
import json

import pytest
from flax import nnx

from student_jax import STTR, MiniConfig, MiniStudent, STTRConfig
from student_jax.student import (
    STUDENTS,
    StudentConfig,
    build_student,
    config_from_json,
    config_to_json,
    register_student,
    student_name,
)
from student_jax.weights.folder import STUDENTS_FOLDER

# What version 0.1.0 wrote for its presets.
UNNAMED_MINI = {
    "backbone": "light",
    "content_widths": [24, 48, 96, 128],
    "style_widths": [24, 48, 96, 128],
    "hidden_dim": 128,
    "num_heads": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 3,
    "mlp_dim": 384,
    "dropout": 0.0,
    "tail_dim": 128,
    "tail_batch_norm": False,
    "content_skips": True,
    "colour_map": True,
    "style_code": 64,
}
UNNAMED_STTR = {
    "backbone": "resnet50",
    "content_widths": [256, 512],
    "style_widths": [256, 512, 1024, 2048],
    "hidden_dim": 256,
    "num_heads": 8,
    "num_encoder_layers": 6,
    "num_decoder_layers": 6,
    "mlp_dim": 2048,
    "dropout": 0.1,
    "tail_dim": 512,
    "tail_batch_norm": True,
    "content_skips": False,
    "colour_map": False,
    "style_code": 0,
}


@dataclasses.dataclass(frozen=True)
class OtherConfig(StudentConfig):
    content_stride = 1
    style_stride = 1


def test_the_students_of_the_package():
    assert STUDENTS["sttr"] == (STTRConfig, STTR)
    assert STUDENTS["mini"] == (MiniConfig, MiniStudent)
    assert student_name(MiniConfig(num_heads=2)) == "mini"


def test_a_name_and_a_configuration_belong_to_one_student(monkeypatch):
    monkeypatch.setattr("student_jax.student.STUDENTS", dict(STUDENTS))
    register_student("sttr", STTRConfig, STTR)  # again: nothing changes
    with pytest.raises(ValueError, match="cannot register OtherConfig as 'sttr'"):
        register_student("sttr", OtherConfig, STTR)
    with pytest.raises(ValueError, match=r"cannot register STTRConfig as 'other': .* is 'sttr'"):
        register_student("other", STTRConfig, STTR)


def test_configurations_carry_the_name_of_their_student():
    fields = config_to_json(MiniConfig())
    assert fields["student"] == "mini" and fields["content_widths"] == [24, 48, 96, 128]
    assert fields == json.loads(json.dumps(fields))
    assert json.loads((STUDENTS_FOLDER / "mini" / "config.json").read_text()) == fields


def test_unregistered_students_are_refused():
    for function in (config_to_json, student_name):
        with pytest.raises(ValueError, match="OtherConfig is not registered"):
            function(OtherConfig())
    with pytest.raises(ValueError, match="OtherConfig is not registered"):
        build_student(OtherConfig(), rngs=nnx.Rngs(0))
    known = "mini, modulated, sttr"
    with pytest.raises(ValueError, match=rf"'other' is not known, only {known}; .*registered"):
        config_from_json({"student": "other"})


def test_configurations_of_version_0_1_0():
    assert config_from_json(UNNAMED_MINI) == MiniConfig()
    assert config_from_json(UNNAMED_STTR) == STTRConfig.reference()
    half = UNNAMED_MINI | {"content_widths": [12, 24], "tail_dim": 64}
    assert config_from_json(half) == MiniConfig(content_widths=(12, 24), tail_dim=64)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (UNNAMED_STTR | {"content_skips": True}, "neither the paper's STTR nor the mini.*0.1.0"),
        (UNNAMED_MINI | {"colour_map": False, "style_code": 0}, "neither .*; export it as Stable"),
        (UNNAMED_MINI | {"style_code": 0}, "style_code is 0"),
        (UNNAMED_STTR | {"depth": 3}, r"unknown \['depth'\]"),
        ({"widths": [3]}, 'it has no "student"'),
        ({}, 'it has no "student"'),
    ],
)
def test_what_is_neither_student_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config_from_json(fields)
