import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from student_jax import STTR
from student_jax.pretrained import save_pretrained
from student_jax.stylise import Stylist, pad_to_multiple, resize_to_multiple
from student_jax.stylise_files import StyliseConfig, stylise_files
from triplets import InputError, read_image


@pytest.fixture(scope="module")
def student(tiny_model):
    return STTR(tiny_model, rngs=nnx.Rngs(1))


@pytest.fixture(scope="module")
def stylist(student):
    return Stylist(student)


def picture(height, width, seed=0):
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


@pytest.mark.parametrize("size", [(64, 64), (65, 91), (30, 70), (1, 1)])
def test_any_size_comes_back(stylist, size):
    result = stylist(picture(*size), picture(70, 66))
    assert result.shape == (*size, 3) and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1


def test_sides_that_fit_are_given_to_the_model_as_they_are(stylist, student):
    content, style = picture(64, 96), picture(64, 64, seed=1)
    expected = jnp.clip(student(jnp.array(content[None]), jnp.array(style[None]))[0], 0, 1)
    # Compiled and op-by-op programs round differently.
    np.testing.assert_allclose(stylist(content, style), expected, atol=1e-5)


def test_strength_blends_from_the_content(stylist):
    content, style = picture(64, 64), picture(64, 64, seed=1)
    none, half, full = (stylist(content, style, strength) for strength in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none, content)
    np.testing.assert_allclose(half, (content + full) / 2, atol=1e-6)
    with pytest.raises(InputError, match=r"strength is 1\.5"):
        stylist(content, style, 1.5)


def test_batches(stylist):
    contents = np.stack([picture(64, 64, i) for i in range(2)])
    styles = np.stack([picture(64, 64, i) for i in range(2, 4)])
    each, one = stylist(contents, styles), stylist(contents, styles[0])
    for i in range(2):
        np.testing.assert_allclose(each[i], stylist(contents[i], styles[i]), atol=1e-5)
        np.testing.assert_allclose(one[i], stylist(contents[i], styles[0]), atol=1e-5)
    with pytest.raises(InputError, match="2 styles for 1 contents"):
        stylist(contents[0], styles)


def test_pixels_outside_the_range_are_refused(stylist):
    with pytest.raises(InputError, match=r"the style has values from 0\.0 to 255\.0"):
        stylist(picture(64, 64), np.float32([[[0.0, 255.0, 3.0]]]))


def test_padding_mirrors_and_resizing_keeps_the_range():
    image = picture(63, 70)
    padded = pad_to_multiple(image, 16)
    assert padded.shape == (64, 80, 3)
    np.testing.assert_array_equal(padded[:63, :70], image)
    np.testing.assert_array_equal(padded[63, :70], image[62])
    np.testing.assert_array_equal(padded[:63, 70:], image[:, :59:-1][:, :10])
    resized = resize_to_multiple(image, 16)
    assert resized.shape == (64, 64, 3) and resized.min() >= 0 and resized.max() <= 1


@pytest.fixture
def files(student, tmp_path):
    """A student, two contents (one in a folder below, one broken), and a style."""
    save_pretrained(student, tmp_path / "student")
    (tmp_path / "content" / "below").mkdir(parents=True)
    Image.new("RGB", (70, 64), "red").save(tmp_path / "content" / "a.jpg")
    Image.new("L", (64, 80), 90).save(tmp_path / "content" / "below" / "b.png")
    (tmp_path / "content" / "broken.png").write_bytes(b"nothing")
    Image.new("RGB", (600, 300), "blue").save(tmp_path / "style.png")
    return StyliseConfig(
        str(tmp_path / "content"),
        str(tmp_path / "style.png"),
        tmp_path / "out",
        checkpoint=str(tmp_path / "student"),
        style_size=64,
    )


def test_folder_of_contents(files, capsys):
    stylise_files(files)
    results = {path.name: read_image(path) for path in files.out.iterdir()}
    assert {name: image.shape for name, image in results.items()} == {
        "a--style.png": (64, 70, 3),
        "below_b--style.png": (80, 64, 3),
    }
    captured = capsys.readouterr()
    assert "skipped broken.png: " in captured.err
    assert "2 pictures written" in captured.out and "1 inputs were skipped" in captured.out


def test_results_are_kept_unless_told_otherwise(files, capsys):
    files.out.mkdir()
    Image.new("RGB", (2, 2)).save(files.out / "a--style.png")
    stylise_files(files)
    assert read_image(files.out / "a--style.png").shape == (2, 2, 3)
    assert "1 were there already" in capsys.readouterr().out
    stylise_files(dataclasses.replace(files, overwrite=True))
    assert read_image(files.out / "a--style.png").shape == (64, 70, 3)


def test_results_never_share_a_name(files):
    content = files.out.parent / "content"
    Image.new("RGB", (64, 64)).save(content / "a.png")
    stylise_files(files)
    names = {path.name for path in files.out.iterdir()}
    assert names == {"a.jpg--style.png", "a.png--style.png", "below_b.png--style.png"}


def test_no_usable_picture(files):
    with pytest.raises(InputError, match="no usable style"):
        stylise_files(dataclasses.replace(files, style=files.content + "/broken.png"))
    with pytest.raises(InputError, match="no usable content"):
        stylise_files(dataclasses.replace(files, content=files.content + "/broken.png"))
