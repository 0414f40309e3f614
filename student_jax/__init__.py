"""The students: small networks that learn a diffusion teacher's style transfer."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from student_jax.inference.stylist import Stylist
    from student_jax.nets.vgg import VGG16, VGG19
    from student_jax.students import STTR, MiniConfig, MiniStudent, STTRConfig

__all__ = ["STTR", "VGG16", "VGG19", "MiniConfig", "MiniStudent", "STTRConfig", "Stylist"]

_MODULES = {"Stylist": "inference.stylist", "VGG16": "nets.vgg", "VGG19": "nets.vgg"}


def __getattr__(name: str) -> Any:
    # When it is first asked for: JAX takes seconds to start, and not every command needs it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'students')}")
    return getattr(module, name)
