"""The ComfyUI node, called as ComfyUI calls it: no more of ComfyUI than its folders is needed."""

import importlib.util
import shutil
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from flax import nnx

from student_jax.export.onnx_files import onnx_files
from student_jax.students import ModulatedConfig, ModulatedStudent

NODE = Path(__file__).parents[2] / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    root = tmp_path_factory.mktemp("ComfyUI")
    custom = root / "custom_nodes" / "style_distil"
    shutil.copytree(NODE, custom)
    config = ModulatedConfig((8, 8, 8), 8, (8, 8), num_blocks=1, style_code=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # symbolic shapes
        files = onnx_files(ModulatedStudent(config, rngs=nnx.Rngs(1)))
    (root / "models" / "style_distil" / "tiny").mkdir(parents=True)
    for name, file in files.items():
        (root / "models" / "style_distil" / "tiny" / name).write_bytes(file)
    spec = importlib.util.spec_from_file_location("style_distil_node", custom / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS["StyleDistil"]


def test_the_node(node):
    assert node.INPUT_TYPES()["required"]["student"] == (["tiny"],)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 40, 50, 3, generator=generator)
    styles = torch.rand(2, 600, 700, 3, generator=generator)
    stylise = getattr(node(), node.FUNCTION)
    (both,) = stylise(images, styles, "tiny", 1.0)
    assert both.shape == images.shape and both.dtype == torch.float32
    (second,) = stylise(images[1:], styles[1:], "tiny", 1.0)
    # A batch of styles is encoded at once: sums are ordered differently.
    np.testing.assert_allclose(both[1:], second, atol=1e-5)
    (unchanged,) = stylise(images, styles[:1], "tiny", 0.0)
    np.testing.assert_array_equal(unchanged, images)


@pytest.mark.parametrize(
    ("images", "styles", "message"),
    [((3, 40, 40), (2, 40, 40), "2 styles for 3"), ((1, 8, 40), (1, 40, 40), "at least 32 px")],
)
def test_inputs_that_do_not_fit(node, images, styles, message):
    with pytest.raises(ValueError, match=message):
        node().stylise(torch.zeros(*images, 3), torch.zeros(*styles, 3), "tiny", 1.0)
