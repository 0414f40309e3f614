"""The students of this package: a folder each, and a line here."""

from student_jax.default import DEFAULT_STUDENT
from student_jax.student import register_student
from student_jax.students.mini.config import MiniConfig
from student_jax.students.mini.model import MiniStudent
from student_jax.students.modulated.config import ModulatedConfig
from student_jax.students.modulated.model import ModulatedStudent
from student_jax.students.sttr.config import STTRConfig
from student_jax.students.sttr.model import STTR

__all__ = [
    "DEFAULT_STUDENT",
    "STTR",
    "MiniConfig",
    "MiniStudent",
    "ModulatedConfig",
    "ModulatedStudent",
    "STTRConfig",
]

register_student("sttr", STTRConfig, STTR)
register_student("mini", MiniConfig, MiniStudent)
register_student("modulated", ModulatedConfig, ModulatedStudent)
