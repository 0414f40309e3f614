"""A Gradio Space: a photo in the style of a painting, by the ONNX files beside this one."""

import json
from pathlib import Path

import gradio as gr
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
MAX_SIDE = 1536

encode_style, stylize = (
    onnxruntime.InferenceSession(HERE / name) for name in ("encode_style.onnx", "stylize.onnx")
)
said = stylize.get_modelmeta().custom_metadata_map
names = json.loads(said["memory"])


def pixels(picture: Image.Image, side: int) -> np.ndarray:
    """RGB in [0, 1], [1 h w 3], with the shorter side reduced to this many pixels."""
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    scale = min(1, side / min(picture.size), 4 * side / max(picture.size))
    size = [max(32, round(length * scale)) for length in picture.size]
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS), np.float32)[None] / 255


def stylise(photo: Image.Image, painting: Image.Image, strength: float, side: int) -> Image.Image:
    """The photo painted in the style of the painting."""
    if photo is None or painting is None:
        raise gr.Error("Choose a photo and a painting.")
    content = pixels(photo, min(int(side), MAX_SIDE))
    style = pixels(painting, int(said["style_scale"]))
    memory = dict(zip(names, encode_style.run(names, {"style": style}), strict=True))
    (stylised,) = stylize.run(["stylised"], {"content": content, **memory})
    mixed = content + strength * (stylised - content)
    return Image.fromarray(np.uint8(np.rint(mixed[0].clip(0, 1) * 255)))


demo = gr.Interface(
    stylise,
    inputs=[
        gr.Image(type="pil", label="Photo"),
        gr.Image(type="pil", label="Style"),
        gr.Slider(0, 1, 1, label="Strength"),
        gr.Slider(256, MAX_SIDE, 512, step=64, label="Shorter side (px)"),
    ],
    outputs=gr.Image(type="pil", label="Stylised", format="png"),
    title="style-distil",
    description="A photo in the style of a painting, in one forward pass of a small network.",
    flagging_mode="never",
)

if __name__ == "__main__":
    demo.launch()
