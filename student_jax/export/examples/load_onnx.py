"""Usage: load_onnx.py FOLDER CONTENT STYLE OUT.png"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

encode_style, stylize = (
    onnxruntime.InferenceSession(Path(sys.argv[1]) / name)
    for name in ("encode_style.onnx", "stylize.onnx")
)
content, style = (
    np.asarray(Image.open(path).convert("RGB"), np.float32)[None] / 255 for path in sys.argv[2:4]
)
names = [output.name for output in encode_style.get_outputs()]
memory = dict(zip(names, encode_style.run(names, {"style": style}), strict=True))
# The memory of a style serves any number of contents.
stylised = stylize.run(["stylised"], {"content": content, **memory})[0]
Image.fromarray(np.uint8(np.rint(stylised[0] * 255))).save(sys.argv[4])
