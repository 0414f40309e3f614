"""ZeCon (Yang et al., ICCV 2023)."""

from teacher_torch.teacher import register_teacher
from teacher_torch.zecon.adapter import ZeConTeacher, open_zecon
from teacher_torch.zecon.config import ZeConConfig
from teacher_torch.zecon.guidance import ZeCon

__all__ = ["ZeCon", "ZeConConfig", "ZeConTeacher"]

register_teacher(
    "zecon",
    ZeConConfig,
    open_zecon,
    {
        "vgg_statistics": ZeConConfig.vgg_statistics(),
        "paper": ZeConConfig.paper(),
        "clip_image": ZeConConfig.clip_image(),
    },
)
