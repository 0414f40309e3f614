"""Usage: load_onnx.py STUDENT.onnx CONTENT STYLE OUT.png"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

student = onnxruntime.InferenceSession(sys.argv[1])
sizes = [(x.shape[2], x.shape[1]) for x in student.get_inputs()]
pictures = [
    Image.open(p).convert("RGB").resize(s) for p, s in zip(sys.argv[2:4], sizes, strict=True)
]
content, style = (np.asarray(p, np.float32)[None] / 255 for p in pictures)
stylised = student.run(["stylised"], {"content": content, "style": style})[0]
Image.fromarray(np.uint8(np.rint(stylised[0] * 255))).save(sys.argv[4])
