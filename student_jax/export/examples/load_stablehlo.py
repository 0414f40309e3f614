"""Usage: load_stablehlo.py STUDENT.stablehlo CONTENT STYLE OUT.png"""

import sys
from pathlib import Path

import jax.export
import numpy as np
from PIL import Image

student = jax.export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
sizes = [shape.shape[2:0:-1] for shape in student.in_avals]
pictures = [
    Image.open(p).convert("RGB").resize(s) for p, s in zip(sys.argv[2:4], sizes, strict=True)
]
stylised = student.call(*(np.asarray(p, np.float32)[None] / 255 for p in pictures))
Image.fromarray(np.uint8(np.rint(np.asarray(stylised[0]) * 255))).save(sys.argv[4])
