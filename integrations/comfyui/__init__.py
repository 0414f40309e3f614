"""ComfyUI node: paint pictures in the style of another with a style-distil student.

Copy this folder to ComfyUI/custom_nodes/style_distil, and the files of `style-distil export --out
DIR --formats onnx --weights float16` to ComfyUI/models/style_distil/NAME. It needs onnxruntime, and
neither JAX nor this project.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import torch

STUDENTS = Path(__file__).resolve().parents[2] / "models" / "style_distil"
LEAST_SIDE = 32


class StyleDistil:
    """A batch of images in the style of one image, or of one image each."""

    CATEGORY = "image/style"
    FUNCTION = "stylise"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        """ComfyUI's description of the inputs."""
        students = sorted(path.parent.name for path in STUDENTS.glob("*/stylize.onnx"))
        return {
            "required": {
                "image": ("IMAGE",),
                "style": ("IMAGE",),
                "student": (students,),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}),
            }
        }

    def stylise(self, image, style, student, strength):
        """Images [b h w 3] in [0, 1]; one style, or as many as images.

        Raises:
            ValueError: another number of styles, or sides that are too small.
        """
        if len(style) not in (1, len(image)):
            raise ValueError(f"{len(style)} styles for {len(image)} images; expected 1 or as many.")
        if min(*image.shape[1:3], *style.shape[1:3]) < LEAST_SIDE:
            raise ValueError(f"expected images with sides of at least {LEAST_SIDE} px.")
        encode_style, stylize = _sessions(STUDENTS / student)
        said = stylize.get_modelmeta().custom_metadata_map
        names = json.loads(said["memory"])
        small = _reduced(style[..., :3].float(), int(said["style_scale"]))
        encoded = encode_style.run(names, {"style": small.cpu().numpy()})
        content = image[..., :3].float().cpu().numpy()
        results = []
        # One by one: a large batch would multiply the memory.
        for i in range(len(content)):
            memory = {
                name: x[i : i + 1] if len(x) > 1 else x
                for name, x in zip(names, encoded, strict=True)
            }
            (stylised,) = stylize.run(["stylised"], {"content": content[i : i + 1], **memory})
            results.append(content[i] + strength * (stylised[0] - content[i]))
        return (torch.from_numpy(np.stack(results).clip(0, 1)),)


@lru_cache(maxsize=2)
def _sessions(folder: Path) -> tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]:
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    encode_style, stylize = (
        onnxruntime.InferenceSession(folder / name, providers=providers)
        for name in ("encode_style.onnx", "stylize.onnx")
    )
    return encode_style, stylize


def _reduced(images: torch.Tensor, side: int) -> torch.Tensor:
    """Images [b h w 3] with the shorter side reduced to so many pixels."""
    scale = side / min(images.shape[1:3])
    if scale >= 1:
        return images
    size = [max(LEAST_SIDE, round(length * scale)) for length in images.shape[1:3]]
    channels_first = images.movedim(-1, 1)
    smaller = torch.nn.functional.interpolate(
        channels_first, size, mode="bicubic", antialias=True, align_corners=False
    )
    return smaller.movedim(1, -1).clamp(0, 1)


NODE_CLASS_MAPPINGS = {"StyleDistil": StyleDistil}
NODE_DISPLAY_NAME_MAPPINGS = {"StyleDistil": "Style transfer (style-distil)"}
