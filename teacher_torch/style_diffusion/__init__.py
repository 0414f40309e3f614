"""StyleDiffusion (Wang et al., ICCV 2023)."""

from teacher_torch.style_diffusion.adapter import StyleDiffusionTeacher, open_style_diffusion
from teacher_torch.style_diffusion.config import StyleDiffusionConfig
from teacher_torch.style_diffusion.disentangling import StyleDiffusion
from teacher_torch.teacher import register_teacher

__all__ = ["StyleDiffusion", "StyleDiffusionConfig", "StyleDiffusionTeacher"]

register_teacher(
    "style_diffusion",
    StyleDiffusionConfig,
    open_style_diffusion,
    {
        "vgg_statistics": StyleDiffusionConfig.vgg_statistics(),
        "paper": StyleDiffusionConfig.paper(),
    },
)
