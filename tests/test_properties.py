"""What holds for any input at all: hypothesis looks for one for which it does not."""

import io
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from student_jax.inference.sides import MIN_TOKENS, bucket, fitted_style, mirror_pad
from student_jax.inference.tiling import ramp, spans
from student_jax.nets.mixture import places
from student_jax.weights.published import read_weights
from teacher_torch.pairs import plan_pairs
from triplets import ImageSet, InputError
from triplets.format import check_manifest, ids_sha256, load_array, load_json
from triplets.images import decode_image, encode_image

# The same examples each time, and nothing left behind.
settings.register_profile("here", derandomize=True, database=None, deadline=None, max_examples=60)
settings.load_profile("here")

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=9,
)
MANIFEST = {
    "format_version": 1,
    "image_size": [8, 8],
    "num_contents": 2,
    "num_styles": 3,
    "num_pairs": 6,
    "shard_size": 4,
    "arrays": {},
}
PICTURES = st.tuples(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**32 - 1)).map(
    lambda of: np.random.default_rng(of[2]).integers(0, 256, (*of[:2], 3), np.uint8)
)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A path for one file, written anew for each example."""
    return tmp_path_factory.mktemp("examples") / "file"


# --- entrances: a value of the right kind, or one sentence


@given(st.binary(max_size=300) | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_any_json_is_an_object_or_refused(file, encoded):
    file.write_bytes(encoded)
    try:
        assert isinstance(load_json(file), dict)
    except InputError as error:
        assert "\n" not in str(error)


@given(st.sampled_from(sorted(MANIFEST)), ANY_JSON)
def test_any_value_in_a_manifest_is_usable_or_refused(name, value):
    manifest = MANIFEST | {name: value}
    try:
        check_manifest(manifest, "manifest.json")
    except InputError as error:
        assert "manifest.json" in str(error)
    else:
        counts = [manifest[key] for key in ("num_contents", "num_styles", "num_pairs")]
        assert all(type(count) is int and count >= 0 for count in counts)


def npy(header: str, body: bytes) -> bytes:
    text = header.encode("utf-8") + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + body


SHAPES = st.lists(st.integers(-2, 2**40), max_size=4).map(tuple)
HEADERS = st.text(max_size=60) | st.builds(
    lambda descr, order, shape: str({"descr": descr, "fortran_order": order, "shape": shape}),
    st.sampled_from(["|u1", "<i4", "|O", "<f8", "V9", "", "|u1,|u1"]) | st.text(max_size=4),
    st.booleans() | st.none(),
    SHAPES,
)


@given(HEADERS, st.binary(max_size=64))
def test_any_array_file_is_what_was_asked_for_or_refused(file, header, body):
    file.write_bytes(npy(header, body))
    try:
        array = load_array(file, (None, None), "uint8")
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert array.dtype == np.uint8 and array.ndim == 2 and array.size <= len(body)


TENSORS = st.dictionaries(
    st.text(max_size=5),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "BF16", "F8_E4M3", "I64", "?"]),
            "shape": st.lists(st.integers(0, 2**40), max_size=3),
            "data_offsets": st.lists(st.integers(0, 64), min_size=2, max_size=2),
        }
    )
    | ANY_JSON,
    max_size=3,
)


@given(TENSORS | ANY_JSON, st.binary(max_size=64), st.integers(-9, 9))
def test_any_file_of_weights_is_arrays_or_refused(file, tensors, body, wrong):
    path = file.with_suffix(".safetensors")
    header = json.dumps(tensors).encode()
    path.write_bytes(struct.pack("<Q", max(0, len(header) + wrong)) + header + body)
    try:
        arrays = read_weights(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(array, np.ndarray) for array in arrays.values())


@given(PICTURES, st.integers(0, 2**32 - 1))
def test_a_damaged_picture_is_a_picture_or_refused(picture, seed):
    rng = np.random.default_rng(seed)
    encoded = bytearray(encode_image(picture, rng.choice([".png", ".jpg", ".webp"])))
    for place in rng.integers(0, len(encoded), rng.integers(1, 9)):
        encoded[place] = rng.integers(256)
    try:
        decoded = decode_image(io.BytesIO(encoded), name="picture").pixels
    except InputError as error:
        assert "picture" in str(error) and "\n" not in str(error)
    else:
        assert decoded.dtype == np.uint8 and decoded.ndim == 3 and decoded.shape[2] == 3


@given(
    st.text(max_size=12)
    | st.builds("{}:{}".format, st.sampled_from(["random", "tiles"]), st.integers() | st.text()),
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
def test_any_choice_of_pairs_is_distinct_pairs_or_refused(spec, contents, styles, tile):
    def images(count):
        names = [f"{i}.png" for i in range(count)]
        return ImageSet(np.zeros((count, 1, 1, 3), np.uint8), names, [(1, 1)] * count)

    try:
        pairs = plan_pairs(spec, images(contents), images(styles), 0, tile)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert len(pairs) == len({tuple(pair) for pair in pairs.tolist()}) > 0
        assert (pairs >= 0).all() and (pairs < (contents, styles)).all()


# --- properties


@given(PICTURES, st.sampled_from([".png", ".webp"]))
def test_lossless_pictures_come_back_as_they_were(picture, suffix):
    decoded = decode_image(io.BytesIO(encode_image(picture, suffix)))
    np.testing.assert_array_equal(decoded.pixels, picture)


IDS = st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=6))


@given(IDS, IDS)
def test_other_ids_have_another_checksum(ids, others):
    assert (ids_sha256(ids) == ids_sha256(others)) == (ids == others)


@given(st.integers(1, 32_768), st.sampled_from([4, 8, 16, 24]))
def test_sides_are_few_and_little_larger(side, stride):
    larger = bucket(side, stride)
    assert larger % stride == 0 and larger >= max(side, MIN_TOKENS * stride)
    assert larger <= max(MIN_TOKENS * stride, 1.25 * side + stride)
    if stride.bit_count() == 1:
        assert bucket(larger, stride) == larger


@given(st.integers(1, 9999), st.integers(1, 9999), st.floats(16, 1024), st.sampled_from([8, 16]))
def test_styles_are_fitted_within_four_to_one(height, width, scale, stride):
    h, w = fitted_style(height, width, scale=scale, stride=stride)
    assert h % stride == w % stride == 0
    assert min(h, w) >= MIN_TOKENS * stride
    assert max(h, w) <= max(MIN_TOKENS * stride, 4 * 1.25 * scale + stride)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 20), st.integers(0, 20))
def test_mirrored_pictures_begin_with_the_picture_and_hold_its_values_alone(h, w, more, wider):
    picture = np.arange(h * w * 3, dtype=np.float32).reshape(h, w, 3)
    padded = mirror_pad(picture, h + more, w + wider)
    np.testing.assert_array_equal(padded[:h, :w], picture)
    assert padded.shape == (h + more, w + wider, 3) and set(padded.flat) == set(picture.flat)


@given(st.integers(1, 600), st.integers(1, 64), st.integers(0, 20))
def test_tiles_cover_an_axis_once_and_see_enough(length, tile, halo):
    if tile <= 2 * halo:
        return
    found = spans(length, tile, halo)
    size = min(tile, length)
    assert [span.core_start for span in found] == [0, *(span.core_stop for span in found[:-1])]
    assert found[-1].core_stop == length
    for span in found:
        stop = span.start + size
        assert 0 <= span.start <= span.core_start < span.core_stop <= stop <= length
        assert span.start == 0 or span.core_start - span.start >= halo
        assert stop == length or stop - span.core_stop >= halo
        assert (ramp(length, tile, max(1, halo), span) > 0).all()


@given(st.integers(1, 2000), st.lists(st.floats(0.05, 1), min_size=2, max_size=5))
def test_mixtures_take_rows_in_the_shares_of_the_weights(count, weights):
    shares = np.array(weights) / sum(weights)
    chosen = (places(count)[:, None] >= np.cumsum(shares)[None, :-1]).sum(1)
    taken = np.bincount(chosen, minlength=len(shares))
    # The discrepancy of multiples of the golden ratio is below 1 + ln(n) / ln(golden ratio).
    assert np.abs(taken - count * shares).max() <= 2 * (1 + np.log(count) / np.log(1.618))
