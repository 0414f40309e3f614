import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from student_jax.inference import stylist as stylise
from student_jax.inference.pictures import mask_pixels, resize
from student_jax.inference.plan import Plan
from student_jax.inference.sides import bucket, mirror_pad, nearest_bucket
from student_jax.inference.stylist import EncodedStyle, Stylist
from student_jax.inference.tiling import core_slices, ramp, spans, tile_slices
from student_jax.student import build_student
from triplets import InputError


def visible(model):
    """Untrained students change next to nothing; with this one a wrong pixel shows."""
    kernel = model.tail.upsamplings[-1].kernel
    kernel[...] = 30 * kernel[...]
    return model


@pytest.fixture(scope="module")
def student(tiny_mini):
    return visible(build_student(tiny_mini, rngs=nnx.Rngs(1)))


@pytest.fixture(scope="module", params=["mini", "sttr"])
def any_student(request, tiny_mini, tiny_model):
    config = {"mini": tiny_mini, "sttr": tiny_model}[request.param]
    return visible(build_student(config, rngs=nnx.Rngs(1)))


@pytest.fixture(scope="module")
def stylist(student):
    return Stylist(student)


def picture(height, width, seed=0):
    """Smooth, as photos are: noise at an eighth of the size, enlarged."""
    noise = np.random.default_rng(seed).random((height // 8 + 2, width // 8 + 2, 3), np.float32)
    channels = [
        Image.fromarray(noise[..., c]).resize((width, height), Image.Resampling.BILINEAR)
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 1)


@pytest.mark.parametrize("size", [(64, 64), (65, 91), (1, 1)])
def test_any_size_comes_back(stylist, size):
    result = stylist(picture(*size), picture(70, 66))
    assert result.shape == (*size, 3) and result.dtype == np.float32
    assert result.min() >= 0 and result.max() <= 1


def test_sides_that_fit_are_given_to_the_model_as_they_are(stylist, student):
    content, style = picture(64, 96), picture(64, 64, seed=1)
    expected = jnp.clip(student(jnp.array(content[None]), jnp.array(style[None]))[0], 0, 1)
    # Compiled and op-by-op programs round differently.
    np.testing.assert_allclose(stylist(content, style), expected, atol=1e-5)


def test_all_kinds_of_pictures_mean_the_same(stylist, tmp_path):
    pixels = (255 * picture(64, 64)).astype(np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    floats = pixels / np.float64(255)
    expected = stylist(floats, pixels)
    for kind in (path, str(path), Image.open(path), pixels, jnp.array(floats)):
        np.testing.assert_allclose(stylist(kind, kind), expected, atol=1e-6)
    transparent = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    white = Image.new("L", (64, 64), 255)
    np.testing.assert_array_equal(stylist(transparent, path), stylist(white, path))


def test_photos_held_upright_by_exif(stylist):
    photo = Image.fromarray((255 * picture(64, 96)).astype(np.uint8))
    photo.getexif()[0x0112] = 6
    assert stylist(photo, picture(64, 64)).shape == (96, 64, 3)


def test_strength_blends_from_the_content(stylist):
    content, style = picture(64, 64), picture(64, 64, seed=1)
    none, half, full = (stylist(content, style, strength) for strength in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none, content)
    np.testing.assert_allclose(half, (content + full) / 2, atol=1e-6)
    with pytest.raises(InputError, match=r"strength is 1\.5"):
        stylist(content, style, 1.5)


def test_preserved_colour_changes_only_the_luminance(stylist):
    content, style = 0.25 + picture(64, 64) / 2, picture(64, 64, seed=1)
    full = stylist(content, style)
    kept = stylist(content, style, preserve_colour=True)
    change = kept - content
    inside = (kept > 0).all(-1) & (kept < 1).all(-1)
    assert inside.mean() > 0.5
    np.testing.assert_allclose(change[inside], change[inside][:, :1].repeat(3, 1), atol=1e-6)
    luminance = [x[inside] @ np.float32([0.299, 0.587, 0.114]) for x in (kept, full)]
    np.testing.assert_allclose(*luminance, atol=1e-6)


def test_mask_restricts_the_effect(stylist):
    content, style = picture(64, 64), picture(64, 64, seed=1)
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    result, full = stylist(content, style, mask=mask), stylist(content, style)
    np.testing.assert_array_equal(result[:, :32], content[:, :32])
    np.testing.assert_allclose(result[:, 32:], full[:, 32:], atol=1e-6)
    with pytest.raises(InputError, match=r"the mask has shape \[3, 64\]"):
        stylist(content, style, mask=mask[:3])


def test_mask_pictures_are_brought_to_the_size_of_the_content():
    mask = Image.new("L", (32, 24), 0)
    mask.paste(255, (16, 0, 32, 24))
    share = mask_pixels(mask, (60, 80, 3))[..., 0]
    # The edge, at 40 of 80 px, is blurred by a pixel of the mask; the areas are as they were.
    assert (share[:, :37] == 0).all() and (share[:, 43:] == 1).all()
    np.testing.assert_allclose(share.mean(), 0.5, atol=1e-3)
    assert (mask_pixels(mask, (24, 32, 3))[..., 0] == np.asarray(mask) / 255).all()
    # Of a 4000 x 3000 px photo reduced to 85 px, the height is 64 after rounding.
    assert mask_pixels(mask, (64, 85, 3)).shape == (64, 85, 1)
    with pytest.raises(InputError, match="32 x 24 px for a content of 60 x 80 px; expected the"):
        mask_pixels(mask, (80, 60, 3))


def test_batches_and_lists(stylist):
    contents = np.stack([picture(64, 64, i) for i in range(2)])
    styles = np.stack([picture(64, 64, i) for i in range(2, 4)])
    each, one = stylist(contents, styles), stylist(contents, styles[0])
    for i in range(2):
        np.testing.assert_allclose(each[i], stylist(contents[i], styles[i]), atol=1e-5)
        np.testing.assert_allclose(one[i], stylist(contents[i], styles[0]), atol=1e-5)
    listed = stylist([contents[0], picture(64, 80)], styles[0])
    assert [x.shape for x in listed] == [(64, 64, 3), (64, 80, 3)]
    with pytest.raises(InputError, match="2 styles for 1 contents"):
        stylist(contents[0], styles)


def test_mixtures_reach_from_one_style_to_the_other(stylist):
    content, a, b = picture(64, 64), picture(64, 64, seed=1), picture(96, 64, seed=2)
    encoded = stylist.encode_style([a, b], [3, 1])
    assert isinstance(encoded, EncodedStyle)
    np.testing.assert_allclose(encoded.weights, [0.75, 0.25])
    only_a, only_b = stylist(content, a), stylist(content, b)
    np.testing.assert_array_equal(stylist(content, [a, b], weights=[2, 0]), only_a)
    near_a, near_b = (stylist(content, [a, b], weights=[w, 1 - w]) for w in (0.9, 0.1))
    assert np.abs(near_a - only_a).mean() < np.abs(near_b - only_a).mean()
    assert np.abs(near_b - only_b).mean() < np.abs(near_a - only_b).mean()
    # A mixture of a style with itself is that style.
    np.testing.assert_allclose(stylist(content, [a, a]), only_a, atol=1e-5)
    # Encoded styles are reused, and mixtures mixed on: 1/2 (3/4 a + 1/4 b) + 1/2 b.
    nested = stylist.encode_style([encoded, stylist.encode_style(b)])
    np.testing.assert_allclose(nested.weights, [0.375, 0.125, 0.5])


def test_unusable_weights(stylist):
    styles = [picture(64, 64)] * 2
    with pytest.raises(InputError, match="3 weights for 2 styles"):
        stylist.encode_style(styles, [1, 2, 3])
    with pytest.raises(InputError, match=r"the weights are \[0\.0, -1\.0\]"):
        stylist.encode_style(styles, [0, -1])
    with pytest.raises(InputError, match="expected a list of styles"):
        stylist.encode_style(styles[0], [1])


def test_unusable_pixels_are_refused(stylist):
    with pytest.raises(InputError, match=r"the style has values from 0\.0 to 255\.0"):
        stylist(picture(64, 64), np.float32([[[0.0, 255.0, 3.0]]]))
    with pytest.raises(InputError, match=r"the content has shape \[64, 64\]"):
        stylist(picture(64, 64)[..., 0], picture(64, 64))
    with pytest.raises(InputError, match="the content has dtype int64"):
        stylist(np.zeros((64, 64, 3), np.int64), picture(64, 64))


def test_padding_hardly_shows(stylist, student):
    """The same pixels alone, and as the corner of a padded picture."""
    content, style = picture(132, 140), picture(64, 64, seed=1)
    exact = np.asarray(student(jnp.array(content[None]), jnp.array(style[None]))[0]).clip(0, 1)
    padded = stylist(content, style)  # to 160 x 160
    difference = np.abs(padded - exact)
    effect = np.abs(exact - content).mean()
    # Convolutions see the mirror image beyond the border instead of zeros, which changes what is
    # next to it (little in a trained student: see docs/using.md, but these weights are random);
    # the rest only through attention to those tokens.
    assert difference[-16:].mean() < 0.5 * effect
    assert difference[:-32, :-32].mean() < 0.05 * effect


def test_a_folder_of_odd_sizes_needs_few_programs(student):
    stylist = Stylist(student)
    sizes = [(97, 100), (99, 111), (112, 112), (110, 98), (101, 112), (112, 112), (97, 97)]
    style = stylist.encode_style(picture(64, 64))
    for h, w in sizes:
        stylist(picture(h, w), style)
    # One for the style; 112 x 112 px, with and without padding.
    assert stylist.num_programs == 3


def num_tokens(style):
    return style.memories[0].attended.tokens.shape[1]


def test_large_styles_are_reduced_and_their_sizes_few(student):
    stylist = Stylist(student, style_scale=64)
    tokens = {
        num_tokens(stylist.encode_style(picture(h, w)))
        for h, w in ((128, 128), (130, 131), (640, 650), (64, 64))
    }
    assert tokens == {16 * 16}
    as_it_is = Stylist(student, style_scale=math.inf)
    assert num_tokens(as_it_is.encode_style(picture(96, 96))) == 24 * 24


@pytest.mark.parametrize(("stroke_size", "working"), [(2.0, (64, 48)), ("picture", (512, 384))])
def test_strokes_grow_with_what_is_reduced_for_them(student, stroke_size, working):
    # For a shorter side of 96 px "picture" would be 96 / 512; a quarter is the least.
    content, style = picture(128, 96), picture(64, 64)
    stylist = Stylist(student, stroke_size=stroke_size)
    expected = resize(Stylist(student)(resize(content, *working), style), 128, 96)
    # Both clip to [0, 1]; the one after the picture is resized, the other before as well.
    np.testing.assert_allclose(stylist(content, style), expected, atol=1e-5)
    assert stylist.plan(128, 96, stylist.encode_style(style)).size == working


@pytest.mark.parametrize("stroke_size", [0.0, 9.0, math.nan])
def test_sizes_of_strokes_are_bounded(student, stroke_size):
    with pytest.raises(InputError, match=r'expected 0.25 to 8.0, or "picture"'):
        Stylist(student, stroke_size=stroke_size)


def test_buckets():
    assert [bucket(x, 16) for x in (1, 64, 65, 256, 257, 400, 1080)] == [
        64, 64, 80, 256, 320, 448, 1280,
    ]  # fmt: skip
    assert [nearest_bucket(x, 16) for x in (1, 70, 341, 256)] == [64, 64, 320, 256]
    sides = {bucket(x, 16) for x in range(256, 4097)}
    assert len(sides) == 4 * 4 + 1 and all(side % 16 == 0 for side in sides)
    # Any stride will do.
    assert all(f(x, 12) % 12 == 0 for x in range(1, 999, 7) for f in (bucket, nearest_bucket))


def test_mirror_padding():
    image = picture(63, 70)
    padded = mirror_pad(image, 64, 80)
    np.testing.assert_array_equal(padded[:63, :70], image)
    np.testing.assert_array_equal(padded[63, :70], image[62])
    np.testing.assert_array_equal(padded[:63, 70:], image[:, :59:-1][:, :10])


@pytest.mark.parametrize(("length", "tile"), [(40, 20), (41, 20), (33, 32), (20, 20), (7, 20)])
def test_the_cores_of_tiles_cover_each_place_once(length, tile):
    halo = 4
    parts = spans(length, tile, halo)
    covered = [index for s in parts for index in range(s.core_start, s.core_stop)]
    assert covered == list(range(length))
    for s in parts:
        assert s.start >= 0 and s.start + min(tile, length) <= length
        assert s.core_start == 0 or s.core_start - s.start >= halo
        assert s.core_stop == length or s.start + tile - s.core_stop >= halo
        assert ramp(length, tile, halo, s).min() > 0


def test_slices_of_tiles_and_their_cores():
    y, x = spans(20, 20, 4)[0], spans(40, 20, 4)[1]
    assert tuple(x) == (12, 16, 28)
    assert tile_slices(y, x, (20, 20)) == (slice(0, 20), slice(12, 32))
    in_whole, in_tile = core_slices(y, x, stride=2)
    assert in_whole == (slice(0, 40), slice(32, 56)) and in_tile == (slice(0, 40), slice(8, 32))


def test_tiles_are_exact_where_attention_is_whole(any_student):
    """The step at tile borders is rounding."""
    content, style = picture(150, 203), picture(64, 64, seed=1)
    stylist = Stylist(any_student)
    encoded = stylist.encode_style(style)
    side = 4 * 26  # tokens of 4 px: two halos and ten tokens between them
    assert side > 8 * any_student.tiles.halo
    tiled = stylist(content, encoded, plan=Plan((150, 203), (side, side), None, 0))
    padded = mirror_pad(content, 152, 204)
    predict = jax.jit(lambda content, style: any_student(content, style))
    whole = np.asarray(predict(jnp.array(padded[None]), jnp.array(style[None]))[0]).clip(0, 1)
    np.testing.assert_allclose(tiled, whole[:150, :203], atol=1e-5)


def test_windows_of_attention_fade_into_each_other(any_student, monkeypatch):
    content, style = picture(160, 208), picture(64, 64, seed=1)
    stylist = Stylist(any_student)
    encoded = stylist.encode_style(style)
    plan = Plan((160, 208), (104, 104), (26, 26), 0)
    whole = stylist(content, encoded, plan=plan._replace(window=None))
    faded = stylist(content, encoded, plan=plan)

    def cut(length, tile, halo, span):
        index = np.arange(tile) + span.start
        return np.float32((index >= span.core_start) & (index < span.core_stop))

    monkeypatch.setattr(stylise, "ramp", cut)
    abrupt = stylist(content, encoded, plan=plan)
    effect = np.abs(whole - content).mean()
    assert np.abs(faded - whole).mean() < 0.05 * effect
    # The largest step from a column to the next that the whole does not have.
    step = [np.abs(np.diff(x - whole, axis=1)).mean(axis=(0, 2)).max() for x in (faded, abrupt)]
    # With these weights attention matters little: the steps are 1.2 and 1.5 % of the effect.
    assert step[0] < 0.9 * step[1]
    assert step[0] < 0.02 * effect


def test_windows_share_the_statistics_of_the_whole_picture(student):
    """A map of colours for each window would show as a step between them."""
    stylist = Stylist(student)
    style = stylist.encode_style(picture(64, 64, seed=1))
    stride = student.config.content_stride
    content = picture(40 * stride, 52 * stride)
    tokens = jax.device_get(student.tiles.encode(content[None]))
    whole = stylist._transform(tokens, style, (40, 52))
    windows = stylist._transform(tokens, style, (26, 26))
    assert windows.tokens.shape == whole.tokens.shape
    for name in ("colour_map", "style_code"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            getattr(windows, name),
            getattr(whole, name),
        )


def test_the_plan_keeps_within_the_memory(student):
    stylist = Stylist(student)
    style = stylist.encode_style(picture(64, 64))
    whole = stylist.plan(1000, 1000, style)
    assert whole.tile is None
    small = Stylist(student, max_memory=int(0.9 * whole.bytes))
    plan = small.plan(1000, 1000, style)
    assert plan.tile == (512, 512) and plan.window is None and plan.bytes <= 0.9 * whole.bytes
    assert "in tiles of 512 x 512 px, exact attention" in str(plan)
    with pytest.raises(InputError, match="1000 x 1000 px do not fit into 0 MiB"):
        Stylist(student, max_memory=1000).plan(1000, 1000, style)


def test_a_plan_that_was_made_is_followed(student):
    stylist = Stylist(student)
    content, style = picture(64, 64), stylist.encode_style(picture(64, 64, seed=1))
    plan = stylist.plan(64, 64, style)
    programs = stylist.num_programs
    expected = stylist(content, style, plan=plan)
    assert stylist.num_programs == programs
    np.testing.assert_array_equal(stylist(content, style), expected)


def test_batches_that_do_not_fit_are_done_one_by_one(student):
    contents = np.stack([picture(64, 64, i) for i in range(3)])
    styles = np.stack([picture(64, 64, i) for i in range(3, 6)])
    stylist = Stylist(student)
    expected = stylist(contents, styles)
    alone = stylist.plan(64, 64, stylist.encode_style(styles[0])).bytes
    small = Stylist(student, max_memory=alone)
    # Other programs round differently.
    np.testing.assert_allclose(small(contents, styles), expected, atol=1e-5)
