"""Spaces, and the app of one with its interface stubbed."""

import runpy
import sys
import types

import jaxtyping
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from student_jax.export.onnx_files import ENCODE_STYLE, STYLIZE
from student_jax.export.space import write_space
from student_jax.students import ModulatedConfig, ModulatedStudent
from triplets import InputError


@pytest.fixture(scope="module")
def model():
    config = ModulatedConfig((8, 8, 8), 8, (8, 8), num_blocks=1, style_code=8)
    return ModulatedStudent(config, rngs=nnx.Rngs(1))


class Refusal(Exception):
    pass


def test_a_gradio_space(model, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic shapes
        write_space(model, tmp_path / "space", "gradio")
    names = {path.name for path in (tmp_path / "space").iterdir()}
    assert names == {"README.md", "app.py", "requirements.txt", ENCODE_STYLE, STYLIZE}
    card = (tmp_path / "space" / "README.md").read_text()
    assert "sdk: gradio" in card and "app_file: app.py" in card

    gradio = types.ModuleType("gradio")
    for name in ("Image", "Slider", "Interface"):
        setattr(gradio, name, lambda *args, **options: (args, options))
    gradio.Error = Refusal
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    app = runpy.run_path(str(tmp_path / "space" / "app.py"))
    photo, painting = (
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (50, 70, 3), np.uint8))
        for i in range(2)
    )
    stylised = app["stylise"](photo, painting, 1.0, 512)
    assert stylised.size == photo.size
    np.testing.assert_array_equal(app["stylise"](photo, painting, 0.0, 512), photo)
    with pytest.raises(Refusal, match="Choose a photo"):
        app["stylise"](None, painting, 1.0, 512)


def test_a_folder_that_holds_something_else(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something other than a Space"):
        write_space(model, tmp_path, "static")
