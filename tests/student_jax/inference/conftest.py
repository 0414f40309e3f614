import pytest
from flax import nnx
from PIL import Image

from student_jax import STTR
from student_jax.inference.command import StyliseConfig
from student_jax.weights.folder import save_pretrained


@pytest.fixture(scope="module")
def checkpoint(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    save_pretrained(STTR(tiny_model, rngs=nnx.Rngs(1)), folder)
    return str(folder)


@pytest.fixture
def files(checkpoint, tmp_path):
    """Two contents, one in a folder below, and a style."""
    (tmp_path / "content" / "below").mkdir(parents=True)
    Image.new("RGB", (64, 60), "red").save(tmp_path / "content" / "a.jpg")
    Image.new("L", (64, 64), 90).save(tmp_path / "content" / "below" / "b.png")
    Image.new("RGB", (600, 300), "blue").save(tmp_path / "style.png")
    return StyliseConfig(
        (str(tmp_path / "content"),),
        (str(tmp_path / "style.png"),),
        str(tmp_path / "out"),
        checkpoint=checkpoint,
        style_scale=64,
    )
