from pathlib import Path

import pytest

from student_jax.inference.inputs import Input
from student_jax.inference.result_names import (
    check_suffix,
    is_file_name,
    list_jobs,
    name_of_file,
    possible_names,
    result_path,
    unique_names,
)
from triplets import InputError


def named(*ids):
    return [Input(name, f"in/{name}", Path("in", name)) for name in ids]


def test_names_without_suffixes_where_that_is_enough():
    assert unique_names(named("a.jpg", "below/b.png", "clip.mp4")) == ["a", "below_b", "clip"]
    assert unique_names(named("a.jpg", "a.png", "below/b.png")) == ["a.jpg", "a.png", "below_b.png"]
    assert unique_names(named("St. Remy", "s.v2.tif", ".jpg")) == ["St. Remy", "s.v2", ".jpg"]
    ids = [f"coco/2017:1.1.0:train:{i}" for i in range(2)]
    assert unique_names(named(*ids)) == [name.replace("/", "_") for name in ids]
    assert unique_names(named(ids[0])) == ["coco_2017:1.1.0:train:0"]


def test_names_of_files_from_several_folders():
    files = [Input("a.jpg", label, Path(label)) for label in ("x/a.jpg", "../y/a.jpg")]
    assert unique_names(files) == ["x_a.jpg", "y_a.jpg"]
    files = [Input("a.jpg", label, Path(label)) for label in ("x/a.jpg", "../x/a.jpg")]
    with pytest.raises(
        InputError, match=r'"x/a.jpg" and "../x/a.jpg" would share .* x_a\.jpg; rename'
    ):
        unique_names(files)


def test_paths_of_results(tmp_path):
    assert result_path("out", "a", "s") == Path("out/a--s.png")
    assert result_path("out", "a", "s", "video") == Path("out/a--s.mp4")
    assert result_path("o/{style}/{content}.webp", "a", "s") == Path("o/s/a.webp")
    assert result_path("{content}.png", "a", "s", "video") == Path("a.mp4")
    assert result_path("{content}.mov", "a", "s") == Path("a.png")
    assert result_path("one.jpg", "a", "s") == Path("one.jpg")
    assert result_path("one.jpg/", "a", "s") == Path("one.jpg/a--s.png")
    folder = tmp_path / "photos.jpg"
    folder.mkdir()
    assert result_path(str(folder), "a", "s") == folder / "a--s.png"
    assert not is_file_name("out") and is_file_name("one.tiff") and is_file_name("{content}")


def test_suffixes_that_cannot_hold_a_result():
    for out, kinds in (("out", {"video"}), ("a.mp4", {"video"}), ("a.mp4", {"picture", "video"})):
        check_suffix(out, kinds)
    for out, kinds in (("a.png", {None}), ("a.png", {"video", None}), ("-", {"picture", None})):
        check_suffix(out, kinds)
    for out, kinds, message in (
        ("a.gif", {None}, r"expected a folder, or a file or pattern that ends in \.png, \.jpg"),
        ("a.png", {"video"}, r"expected a video to end in \.mp4"),
        ("{content}.mov", {"picture"}, r"expected a picture to end in \.png"),
        ("-", {"picture", "video"}, "videos cannot go to standard output"),
    ):
        with pytest.raises(InputError, match=message):
            check_suffix(out, kinds)


def test_results_never_replace_inputs_or_each_other():
    contents = named("a.jpg", "below/b.png")
    files = {content.path for content in contents}
    with pytest.raises(InputError, match=r"a\.jpg is one of the inputs"):
        list_jobs("in/{content}.jpg", contents, ["style"], files)
    message = r"in/a\.jpg with style and in/below/b\.png with style would both be one\.png"
    with pytest.raises(InputError, match=message):
        list_jobs("one.png", contents, ["style"], files)
    with pytest.raises(InputError, match=r"would both be -; give a folder"):
        list_jobs("-", contents, ["style"], files)


def test_every_content_with_every_style():
    contents = named("a.jpg", "clip.mp4")
    jobs = list_jobs("out", contents, ["s", "t"], [])
    assert [(job.content.id, job.style, job.out) for job in jobs] == [
        ("a.jpg", "s", "out/a--s.png"),
        ("a.jpg", "t", "out/a--t.png"),
        ("clip.mp4", "s", "out/clip--s.mp4"),
        ("clip.mp4", "t", "out/clip--t.mp4"),
    ]
    [stream] = list_jobs("-", contents[:1], ["s"], [])
    assert stream.path is None and stream.out == "-"


def test_names_under_which_results_are_looked_for():
    assert possible_names("x/a.jpg", "s.png") == [
        "x_a--s",
        "x_a--s.png",
        "x_a.jpg--s",
        "x_a.jpg--s.png",
        "x_a_stylized_s",
        "x_a_stylized_s.png",
        "x_a.jpg_stylized_s",
        "x_a.jpg_stylized_s.png",
    ]
    assert name_of_file("x/a--s.v2.PNG") == "x_a--s.v2"


@pytest.mark.parametrize(
    "ids",
    [
        ("a.jpg", "x/b.JPEG", "x/St. Remy.png"),
        ("a.jpg", "a.png"),
        ("a.1", "a.2", "a"),
        ("coco/2017:1.1.0:train:3",),
    ],
)
def test_results_are_looked_for_under_the_names_that_they_get(ids):
    for job in list_jobs("out", named(*ids), unique_names(named("s.v2.tif")), []):
        file = job.path.relative_to("out").as_posix()
        assert name_of_file(file) in possible_names(job.content.id, "s.v2.tif")
