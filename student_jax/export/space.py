"""A folder that is pushed to the Hugging Face Hub as a Space: the demo page, or a Gradio app."""

import shutil
from pathlib import Path
from typing import Literal

from student_jax.export.onnx_files import ENCODE_STYLE, STYLIZE, onnx_files
from student_jax.student import Student, student_name
from triplets import InputError
from triplets.atomic import atomic_write, make_folder

Sdk = Literal["static", "gradio"]

APP = Path(__file__).parent / "spaces" / "app.py"
GRADIO = "6.31.0"
REQUIREMENTS = "numpy>=2\nonnxruntime>=1.20\npillow>=11\n"

_CARD = """---
title: style-distil
emoji: 🎨
colorFrom: red
colorTo: yellow
sdk: {sdk}
{settings}
license: mit
tags: [style-transfer, image-to-image, onnx]
---

# style-distil

A photo in the style of a painting, in one forward pass of the `{student}` student. {where}
"""


def write_space(model: Student, folder: Path, sdk: Sdk) -> None:
    """Write a Space, ready to push.

    Raises:
        InputError: the folder holds something else, a file is in the way, or what the page needs
            is missing.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "README.md").is_file():
        raise InputError(
            f"the folder {str(folder)!r} holds something other than a Space; give another."
        )
    if sdk == "static":
        from student_jax.demo.static_page import write_page

        write_page(model, folder)
        settings, where = "app_file: index.html", "It is computed in your browser."
    else:
        make_folder(folder)
        files = onnx_files(model, "float16", batch=1)
        for name in (ENCODE_STYLE, STYLIZE):
            with atomic_write(folder / name) as file:
                file.write(files[name])
        shutil.copyfile(APP, folder / "app.py")
        with atomic_write(folder / "requirements.txt") as file:
            file.write(REQUIREMENTS.encode())
        settings, where = f"sdk_version: {GRADIO}\napp_file: app.py", "It is computed by the Space."
    card = _CARD.format(sdk=sdk, settings=settings, where=where, student=student_name(model.config))
    with atomic_write(folder / "README.md") as file:
        file.write(card.encode())
