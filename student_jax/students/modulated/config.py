"""Architecture of the modulated student."""

import dataclasses

from student_jax.student import StudentConfig


@dataclasses.dataclass(frozen=True)
class ModulatedConfig(StudentConfig):
    """Architecture of a `ModulatedStudent`; the defaults are the bundled model's."""

    widths: tuple[int, ...] = (24, 64, 96)
    """Channels at strides 2, 4 and 8."""
    pixel_width: int = 8
    """Channels at the resolution of the pixels, before the last convolution."""
    style_widths: tuple[int, ...] = (24, 48, 96, 128)
    """Output channels of each stage of the style's backbone, which each halve the picture."""
    num_blocks: int = 3
    """Residual blocks at stride 8."""
    style_code: int = 128
    """Size of the code, computed from the statistics of the style's features, that all filters of
    the style are computed from."""

    @property
    def content_stride(self) -> int:
        """Pixels that a content token spans."""
        return 8

    @property
    def style_stride(self) -> int:
        """Cells of the style span as much as those of the content, and the style's backbone halves
        the picture as often as it has stages."""
        return max(self.content_stride, 2 ** len(self.style_widths))

    @property
    def style_scale(self) -> int:
        """Training is on crops of paintings at their own resolution, about 700 px."""
        return 512

    def __post_init__(self):
        if len(self.widths) != 3:
            raise ValueError(f"widths is {self.widths}; expected three, at strides 2, 4 and 8")
        for name in ("widths", "style_widths"):
            widths = getattr(self, name)
            if not widths or min(widths) < 1:
                raise ValueError(f"{name} is {widths}; expected positive numbers")
        for name in ("pixel_width", "num_blocks", "style_code"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
