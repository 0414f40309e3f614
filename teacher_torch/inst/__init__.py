"""InST (Zhang et al., CVPR 2023)."""

from teacher_torch.inst.adapter import InSTTeacher, open_inst
from teacher_torch.inst.config import InSTConfig
from teacher_torch.inst.module import InversionModule
from teacher_torch.inst.stylisation import Stylisation
from teacher_torch.teacher import register_teacher

__all__ = ["InSTConfig", "InSTTeacher", "InversionModule", "Stylisation"]

register_teacher(
    "inst",
    InSTConfig,
    open_inst,
    {
        "direct": InSTConfig.direct(),
        "paper": InSTConfig.paper(),
        "notebook": InSTConfig.notebook(),
    },
)
