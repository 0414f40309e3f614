"""Configurations of version 0.1.0, whose files do not name their student.

It had one class for both students. What today's students lack was never bundled or a preset.
"""

from collections.abc import Mapping
from typing import Any

from student_jax.student import StudentConfig, config_from_fields
from student_jax.students.mini.config import MiniConfig
from student_jax.students.sttr.config import STTRConfig

STTR_PARTS = {
    "backbone": "resnet50",
    "tail_batch_norm": True,
    "content_skips": False,
    "colour_map": False,
    "style_code": 0,
}
"""Fields of version 0.1.0 that are no longer a choice, with the paper's values."""

MINI_PARTS = {
    "backbone": "light",
    "tail_batch_norm": False,
    "content_skips": True,
    "colour_map": True,
}
"""Likewise with the mini student's."""


def config_from_unnamed(fields: Mapping[str, Any]) -> StudentConfig:
    """The configuration that version 0.1.0 wrote.

    Raises:
        ValueError: not its fields, or an architecture that is neither student's.
    """
    for config, parts in ((STTRConfig, STTR_PARTS), (MiniConfig, MINI_PARTS)):
        if all(fields.get(name) == value for name, value in parts.items()):
            rest = {name: value for name, value in fields.items() if name not in parts}
            return config_from_fields(config, rest)
    if not fields.keys() >= STTR_PARTS.keys():
        raise ValueError(
            'it has no "student", which names one, and not the fields of version 0.1.0 either'
        )
    own = {name: fields[name] for name in STTR_PARTS}
    raise ValueError(
        f"this student of version 0.1.0 ({own}) is neither the paper's STTR nor the mini student; "
        "export it as StableHLO or ONNX with version 0.1.0, or train it again"
    )
