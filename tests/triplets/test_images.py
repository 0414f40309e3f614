import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from triplets import (
    ImageError,
    centre_crop,
    crop_and_resize,
    decode_image,
    encode_image,
    float_from_uint8,
    read_image,
    uint8_from_float,
    write_image,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(tmp_path, picture: Image.Image, name: str, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "TIF", "PNG"])
def test_lossless_rgb_is_read_exactly(tmp_path, suffix):
    pixels = noise(5, 7, 3)
    path = saved(tmp_path, Image.fromarray(pixels), f"a.{suffix}")
    np.testing.assert_array_equal(read_image(path), pixels)
    assert read_image(path).flags.writeable


def test_eight_bit_grey(tmp_path):
    pixels = noise(5, 7)
    image = read_image(saved(tmp_path, Image.fromarray(pixels), "grey.png"))
    np.testing.assert_array_equal(image, np.stack([pixels] * 3, axis=-1))


def test_one_bit(tmp_path):
    picture = Image.fromarray(noise(4, 4) > 127)
    image = read_image(saved(tmp_path, picture, "bits.png"))
    np.testing.assert_array_equal(image[..., 0], np.where(noise(4, 4) > 127, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.array([[0, 255, 256, 257], [32768, 65279, 65535, 128]], np.uint16)
    image = read_image(saved(tmp_path, Image.fromarray(values), f"deep.{suffix}"))
    # 65535 = 255 * 257, so v / 257 rounded
    np.testing.assert_array_equal(image[..., 0], [[0, 1, 1, 1], [128, 254, 255, 0]])


def test_big_endian_sixteen_bit_grey(tmp_path):
    picture = Image.new("I;16B", (3, 2), 40000)
    image = read_image(saved(tmp_path, picture, "deep.tif"))
    np.testing.assert_array_equal(image, np.full((2, 3, 3), 156))  # 40000 / 257 = 155.6


def test_sixteen_bit_range_in_a_32_bit_picture(tmp_path):
    values = np.array([[0, 65535], [257, 514]], np.int32)
    image = read_image(saved(tmp_path, Image.fromarray(values), "deep.tif"))
    np.testing.assert_array_equal(image[..., 0], [[0, 255], [1, 2]])


def test_float_greys(tmp_path):
    unit = np.array([[0.0, 1.0], [0.5, 0.1]], np.float32)
    image = read_image(saved(tmp_path, Image.fromarray(unit), "unit.tif"))
    np.testing.assert_array_equal(image[..., 0], [[0, 255], [128, 26]])
    image = read_image(saved(tmp_path, Image.fromarray(unit * 255), "bytes.tif"))
    np.testing.assert_array_equal(image[..., 0], [[0, 255], [128, 26]])


@pytest.mark.parametrize(
    "values",
    [
        np.array([[0, 65536]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0.0, 300.0]], np.float32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[np.nan, 0.5]], np.float32),
    ],
)
def test_greys_of_unknown_range_are_refused(tmp_path, values):
    path = saved(tmp_path, Image.fromarray(values), "strange.tif")
    with pytest.raises(ImageError, match="grey values run from"):
        read_image(path)


def test_transparent_pixels_are_composited_on_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = [0, 255, 51]  # transparent, opaque, a fifth
    image = read_image(saved(tmp_path, Image.fromarray(rgba), "a.png"))
    # a fifth of (200, 0, 0) and four fifths of white: 0.2 * 200 + 204 = 244
    np.testing.assert_array_equal(image[0], [[255, 255, 255], [200, 0, 0], [244, 204, 204]])


def test_transparent_grey(tmp_path):
    grey_alpha = np.array([[[100, 0], [100, 255]]], np.uint8)
    image = read_image(saved(tmp_path, Image.fromarray(grey_alpha), "la.png"))
    np.testing.assert_array_equal(image[0], [[255] * 3, [100] * 3])


def test_transparent_colour_of_a_palette(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    opaque = saved(tmp_path, picture, "opaque.png")
    np.testing.assert_array_equal(read_image(opaque)[0], [[10, 20, 30], [40, 50, 60]])
    for name in ("keyed.png", "keyed.gif"):
        keyed = saved(tmp_path, picture, name, transparency=0)
        np.testing.assert_array_equal(read_image(keyed)[0], [[255, 255, 255], [40, 50, 60]])


def test_transparent_colour_of_an_rgb_picture(tmp_path):
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    path = saved(tmp_path, Image.fromarray(pixels), "key.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(read_image(path)[0], [[255, 255, 255], [4, 5, 6]])


def test_cmyk_jpeg(tmp_path):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink: red
    image = read_image(saved(tmp_path, picture, "ink.jpg", quality=95))
    # JPEG is lossy: a few levels off
    np.testing.assert_allclose(image, np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=4)


def test_jpeg_and_webp_decode_close_to_their_source(tmp_path):
    ramp = np.stack([np.add.outer(np.arange(64), np.arange(64))] * 3, -1).astype(np.uint8)
    for name in ("a.jpg", "a.jpeg", "a.webp"):
        image = read_image(saved(tmp_path, Image.fromarray(ramp), name, quality=95))
        # lossy formats at high quality on a smooth ramp
        np.testing.assert_allclose(image.astype(int), ramp, atol=6)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"moving.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(read_image(path)[0, 0], [255, 0, 0])


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    stored = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(stored), "turned.png", exif=exif)
    upright = UPRIGHT[orientation](stored)
    decoded = decode_image(path)
    np.testing.assert_array_equal(decoded.pixels, upright)
    assert decoded.original_size == upright.shape[:2]


def test_unknown_orientation_and_damaged_exif_leave_the_picture_as_it_is(tmp_path):
    pixels = noise(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 9
    unknown = saved(tmp_path, Image.fromarray(pixels), "unknown.png", exif=exif)
    np.testing.assert_array_equal(read_image(unknown), pixels)
    damaged = saved(tmp_path, Image.fromarray(pixels), "damaged.png", exif=b"Exif\0\0nonsense")
    np.testing.assert_array_equal(read_image(damaged), pixels)


def test_a_40_megapixel_photograph_is_reduced_while_decoding(tmp_path):
    photo = Image.fromarray(noise(50, 80, 3)).resize((8000, 5000), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, photo, "large.jpg", quality=90, exif=exif)
    reduced = decode_image(path, at_least=256)
    assert reduced.original_size == (8000, 5000)
    assert reduced.pixels.shape == (1000, 625, 3)  # an eighth; the shorter side is above 512
    whole = crop_and_resize(read_image(path), 256).astype(float)
    difference = np.abs(crop_and_resize(reduced.pixels, 256, original_size=(8000, 5000)) - whole)
    assert difference.mean() < 1  # what `decode_image` states


def test_at_least_does_not_touch_small_pictures(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(300, 400, 3)), "small.jpg")
    np.testing.assert_array_equal(decode_image(path, at_least=256).pixels, read_image(path))


def test_truncated_files(tmp_path):
    for name in ("cut.jpg", "cut.png", "cut.webp", "cut.gif"):
        path = saved(tmp_path, Image.fromarray(noise(64, 64, 3)), name)
        data = path.read_bytes()
        for length in (len(data) // 2, 40, 3):
            path.write_bytes(data[:length])
            with pytest.raises(ImageError, match=name) as caught:
                read_image(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"I am a text.\n", b"\xff\xd8\xff", b"%!PS-Adobe-3.0 EPSF-3.0"]
)
def test_files_that_are_no_pictures(tmp_path, data):
    path = tmp_path / "text.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"text\.jpg"):
        read_image(path)


def test_missing_file_folder_and_awkward_names(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png.*No such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=r"two\\nlines") as caught:
        read_image(tmp_path / "two\nlines.png")
    assert "\n" not in str(caught.value)


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("side", [9_000, 100_000])
def test_decompression_bombs_are_refused_by_their_header(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(ImageError, match=r"bomb\.png.*(limit|exceeds)"):
        read_image(path)


def test_size_limits(tmp_path):
    path = saved(tmp_path, Image.fromarray(noise(10, 20, 3)), "a.png")
    assert read_image(path, max_pixels=200).shape == (10, 20, 3)
    with pytest.raises(ImageError, match="20 x 10 pixels, more than the limit of 199"):
        read_image(path, max_pixels=199)
    with pytest.raises(ImageError, match="20 x 10 pixels; its shorter side needs 16"):
        decode_image(path, min_side=16)


def test_one_pixel(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (1, 1), (9, 8, 7)), "dot.png")
    image = read_image(path)
    np.testing.assert_array_equal(crop_and_resize(image, 4), np.full((4, 4, 3), [9, 8, 7]))


def test_centre_crop():
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    # (5 - 2) / 2 = 1.5 rounds to the even 2
    np.testing.assert_array_equal(centre_crop(image), image[:, 2:4])
    np.testing.assert_array_equal(
        centre_crop(image.transpose(1, 0, 2)), image[:, 2:4].swapaxes(0, 1)
    )
    # (4 - 3) / 2 = 0.5 rounds to the even 0
    tall = np.zeros((4, 3, 3), np.uint8)
    tall[3] = 1
    assert centre_crop(tall).max() == 0


def test_crop_and_resize():
    square = noise(8, 8, 3)
    np.testing.assert_array_equal(crop_and_resize(square, 8), square)
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 77  # only the central square is left
    np.testing.assert_array_equal(crop_and_resize(wide, 5), np.full((5, 5, 3), 77))


def test_halving_with_the_lanczos_filter():
    # Weights of a 2:1 Lanczos-3 reduction far from the border: sinc(x) sinc(x / 3) at
    # x = (k + 0.5) / 2, normalised; an impulse shows them.
    impulse = np.zeros((32, 32, 3), np.uint8)
    impulse[:, 16] = 255
    x = (np.arange(-6, 6) + 0.5) / 2
    weights = np.sinc(x) * np.sinc(x / 3)
    weights /= weights.sum()
    # output column j covers input columns 2j - 5 .. 2j + 6
    expected = [255 * weights[16 - (2 * j - 5)] for j in (6, 7, 8, 9, 10)]
    image = crop_and_resize(impulse, 16)[8, 6:11, 0]
    # Pillow computes with 8-bit fixed point and clips below zero
    np.testing.assert_allclose(image, np.clip(expected, 0, 255), atol=1)


def test_float_and_uint8():
    every = np.arange(256, dtype=np.uint8)
    unit = float_from_uint8(every)
    assert unit.dtype == np.float32
    assert unit[0] == 0 and unit[255] == 1
    np.testing.assert_array_equal(uint8_from_float(unit), every)
    # 0.5 / 255 is half a step (to the even 0), just above it is 1; outside is clipped
    values = np.array([-3.0, 0.5 / 255, 0.51 / 255, 1.5 / 255, 7.0, np.inf])
    np.testing.assert_array_equal(uint8_from_float(values), [0, 0, 1, 2, 255, 255])


@pytest.mark.parametrize("values", [np.array([0.1, np.nan]), np.array([0, 255]), np.zeros(2, bool)])
def test_uint8_from_float_refuses(values):
    with pytest.raises(ImageError, match="expected"):
        uint8_from_float(values)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "b.PNG"])
def test_lossless_write_and_read(tmp_path, name):
    pixels = noise(9, 12, 3)
    write_image(tmp_path / name, pixels[:, ::2])
    np.testing.assert_array_equal(read_image(tmp_path / name), pixels[:, ::2])
    assert os.listdir(tmp_path) == [name]


def test_jpeg_write(tmp_path):
    ramp = np.stack([np.add.outer(np.arange(64), np.arange(64))] * 3, -1).astype(np.uint8)
    write_image(tmp_path / "a.jpg", ramp)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.format == "JPEG"
    # quality 95 on a smooth ramp
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").astype(int), ramp, atol=3)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".PNG"])
def test_an_encoded_picture_is_what_a_written_file_holds(tmp_path, suffix):
    pixels = noise(9, 12, 3)
    write_image(tmp_path / f"a{suffix}", pixels)
    assert encode_image(pixels, suffix) == (tmp_path / f"a{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".webp"])
def test_a_colour_profile_is_embedded_and_changes_no_pixel(suffix):
    pixels, profile = noise(9, 12, 3), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    encoded = encode_image(pixels, suffix, profile=profile.tobytes())
    with Image.open(io.BytesIO(encoded)) as picture:
        assert picture.info["icc_profile"] == profile.tobytes()
    np.testing.assert_array_equal(
        decode_image(io.BytesIO(encoded)).pixels,
        decode_image(io.BytesIO(encode_image(pixels, suffix))).pixels,
    )


@pytest.mark.parametrize(("quality", "sampling"), [(95, 1), (94, 2)])
def test_jpeg_quality_decides_the_resolution_of_colours(quality, sampling):
    encoded = encode_image(noise(32, 32, 3), ".jpg", quality=quality)
    with Image.open(io.BytesIO(encoded)) as picture:
        # identifier, horizontal and vertical sampling, table of the first component: luma
        assert picture.layer[0][1:3] == (sampling, sampling)


def test_encoding_without_a_name_says_what_could_not_be_written():
    with pytest.raises(
        ImageError, match=r"cannot write a \.gif picture: the suffix must be one of"
    ):
        encode_image(noise(2, 2, 3), ".gif")


@pytest.mark.parametrize("name", ["a.tga", "a", "a.gif"])
def test_write_refuses_unknown_suffixes(tmp_path, name):
    with pytest.raises(ImageError, match=r"the suffix must be one of \.png"):
        write_image(tmp_path / name, noise(2, 2, 3))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((2, 2, 3)),
        np.zeros((2, 2), np.uint8),
        noise(2, 2, 4),
        np.zeros((0, 2, 3), np.uint8),
    ],
)
def test_write_refuses_other_arrays(tmp_path, image):
    with pytest.raises(ImageError, match=r"expected uint8 pixels \[h w 3\], got"):
        write_image(tmp_path / "a.png", image)
    assert not os.listdir(tmp_path)


def test_write_refuses_what_the_format_cannot_hold(tmp_path):
    with pytest.raises(ImageError, match=r"cannot write .*a\.webp"):
        write_image(tmp_path / "a.webp", np.zeros((1, 20_000, 3), np.uint8))
    assert not os.listdir(tmp_path)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, noise(4, 4, 3))
    before = path.read_bytes()

    def disk_full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.png'"):
        write_image(path, noise(4, 4, 3, seed=1))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_write_into_a_missing_folder_names_the_picture(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/a\.png"):
        write_image(tmp_path / "nowhere" / "a.png", noise(2, 2, 3))


def test_written_files_have_ordinary_permissions(tmp_path):
    write_image(tmp_path / "a.png", noise(2, 2, 3))
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_colour_profiles_of_rgb_pixels_are_returned(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = Image.new("RGB", (64, 48), "red")
    for suffix in ("jpg", "png", "webp", "tiff"):
        decoded = decode_image(saved(tmp_path, picture, f"a.{suffix}", icc_profile=profile))
        assert decoded.profile == profile and decoded.original_size == (48, 64)
    assert decode_image(saved(tmp_path, picture, "none.jpg")).profile is None
    grey = profile[:16] + b"GRAY" + profile[20:]
    assert decode_image(saved(tmp_path, picture, "grey.png", icc_profile=grey)).profile is None


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 96)])
def test_long_thin_pictures_are_refused_by_their_header(tmp_path, size):
    """They would be padded to many times their size."""
    Image.new("L", size).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="a side may have 32768"):
        decode_image(tmp_path / "x.png")


def test_files_that_are_too_large_or_no_files_are_not_read(tmp_path):
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(6 * 10**9)
    with pytest.raises(ImageError, match=r"sparse\.jpg': 5722 MiB, more than the limit of 256 MiB"):
        decode_image(tmp_path / "sparse.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match=r"pipe\.jpg': not a regular file"):
        decode_image(tmp_path / "pipe.jpg")
