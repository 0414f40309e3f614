"""The dump of a tiny random teacher: right pairs, exact continuation, honest refusals."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import interrupted_dumps
import numpy as np
import pytest
import torch
import tyro
from diffusers import UNet2DConditionModel
from PIL import Image

from teacher_torch import StyleID, StyleIDConfig
from teacher_torch.dump import DumpConfig, dump, dump_config_type, dump_config_type_for
from teacher_torch.pixels import to_model_range, to_uint8
from triplets import InputError, TripletDataset, crop_and_resize, open_source, read_image
from triplets.format import encode_json

SCRIPT = "scripts/dump_teacher.py"

# The number of threads decides how sums are grouped, and so the last bits.
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folders of 3 contents and 3 styles, so that the grid of pairs has uneven tiles of 2."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("pictures")
    for kind, count in (("content", 3), ("style", 3)):
        (root / kind).mkdir()
        for i in range(count):
            small = rng.integers(0, 256, (5, 7, 3), np.uint8)
            Image.fromarray(small).resize((70, 50)).save(root / kind / f"{kind}{i}.png")
    return root


@pytest.fixture
def config(pictures, model_folder, tmp_path):
    return DumpConfig(
        str(pictures / "content"),
        str(pictures / "style"),
        tmp_path / "out",
        model=str(model_folder),
        method=StyleIDConfig(num_steps=3),
        tile=2,
    )


def files(root):
    return {p.relative_to(root): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_triplets_are_what_the_teacher_makes(config, components):
    dump(config)
    dataset = TripletDataset(config.out)
    assert dataset.verify() == []
    assert len(dataset) == 9 and len({tuple(pair) for pair in dataset.pairs}) == 9
    styleid = StyleID(*components, config.method)
    triplet = dataset[5]
    content, style = (styleid.invert(to_model_range(image[None])) for image in triplet[:2])
    expected = to_uint8(styleid.stylise(content, style))[0].astype(int)
    # Joint and single sampling round differently by far less than one grey level.
    assert np.abs(expected - triplet.stylised).max() <= 1
    settings = dataset.manifest["settings"]
    assert settings["teacher"] == "styleid" and settings["styleid"]["num_steps"] == 3
    assert len(settings["weights_sha256"]) == 64
    assert dataset.manifest["provenance"]["model"] == config.model


@pytest.mark.slow  # test_new_teacher.py interrupts dumps of faster teachers in the same ways
def test_interrupted_dumps_end_in_the_same_bytes(model_folder, pictures, tmp_path):
    command = [sys.executable, interrupted_dumps.__file__, tmp_path, model_folder, pictures]
    program = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD)
    assert program.returncode == 0, program.stderr
    assert int(program.stdout.splitlines()[-1]) > 6  # processes killed
    assert "File too large; finished shards are kept" in program.stderr
    whole = files(tmp_path / "whole")
    for name in ("often", "full", "ranks", "taken-over"):
        assert files(tmp_path / name) == whole, name
    assert TripletDataset(tmp_path / "whole").verify() == []


@pytest.mark.slow
def test_torchrun_fills_one_folder(config, tmp_path):
    def arguments(out):
        command = [SCRIPT, "--content", config.content, "--style", config.style, "--out", str(out)]
        return [*command, "--model", config.model, "--steps", "2", "--tile", "2"]

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for command in (
        [sys.executable, *arguments(tmp_path / "one")],
        [*torchrun, *arguments(tmp_path / "two")],
    ):
        subprocess.run(command, env=ONE_THREAD, check=True)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_full_memory_halves_the_rows_per_call(config, monkeypatch, tmp_path, capsys):
    dump(config)
    forward = UNet2DConditionModel.forward

    def forward_in_little_memory(self, sample, *arguments, **keywords):
        if len(sample) > 3:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return forward(self, sample, *arguments, **keywords)

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward_in_little_memory)
    little = replace(config, out=tmp_path / "little")
    dump(little)
    assert "continuing with at most 2 rows per call" in capsys.readouterr().err
    shard = json.loads((little.out / "pairs-00001" / "shard.json").read_text())
    assert shard["remarks"] == {"rows_per_call": 2}
    for a, b in zip(TripletDataset(config.out), TripletDataset(little.out), strict=True):
        assert np.abs(a.stylised.astype(int) - b.stylised).max() <= 1  # other batches round so

    def forward_in_no_memory(self, sample, *arguments, **keywords):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(UNet2DConditionModel, "forward", forward_in_no_memory)
    with pytest.raises(InputError, match="not even one UNet row fits into the memory of cpu"):
        dump(replace(config, out=tmp_path / "none"))


@pytest.mark.parametrize(
    ("dtype", "capability", "warns"),
    [("bfloat16", "AVX2", True), ("bfloat16", "AVX512", False), ("float32", "AVX2", False)],
)
def test_imitated_bfloat16_is_warned_of(config, dtype, capability, warns, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    dump(replace(config, dtype=dtype))
    assert ("only imitates bfloat16" in capsys.readouterr().err) is warns


def test_memory_budget_decides_the_rows_per_call(config, capsys):
    with pytest.raises(InputError, match=r"--memory-budget 0\.0001: the networks, 2 contents"):
        dump(replace(config, memory_budget=1e-4))
    dump(replace(config, memory_budget=0.0015))
    settings = TripletDataset(config.out).manifest["settings"]
    assert settings["rows_per_call"] in (1, 2, 4, 8)
    plan = capsys.readouterr().out
    assert f"at most {settings['rows_per_call']} per call" in plan and "of 0.00 GiB on cpu" in plan


def test_numbers_that_overflow(config, monkeypatch):
    decode = StyleID.decode
    monkeypatch.setattr(StyleID, "decode", lambda self, latents: decode(self, latents) * torch.inf)
    with pytest.raises(InputError, match="overflow in float32: use --dtype bfloat16"):
        dump(config)


def test_float16_network_gives_nearly_the_same(config, tmp_path):
    dump(config)
    dump(replace(config, dtype="float16", out=tmp_path / "half"))
    full, half = (TripletDataset(path) for path in (config.out, tmp_path / "half"))
    assert half.manifest["settings"]["dtype"] == "float16"
    differences = [
        np.abs(a.stylised.astype(int) - b.stylised) for a, b in zip(full, half, strict=True)
    ]
    # Grey levels. bfloat16, with 8 times coarser numbers, makes 7.5 of this random teacher.
    assert 0 < np.mean(differences) < 2


def test_null_text_is_kept_and_used_again(config, monkeypatch):
    dump(config)
    stored = np.load(config.out / "null_text.npy", allow_pickle=False)
    assert stored.shape == (1, 3, 8) and stored.dtype == np.float32
    null_text = Path(config.model) / "null_text.safetensors"
    null_text.rename(config.out.parent / "gone")
    try:
        null_text.write_bytes(b"never read")
        dump(config)
    finally:
        (config.out.parent / "gone").replace(null_text)


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, {}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, {}, (3, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, {"rank": 0, "world_size": 2}, (0, 2)),
    ],
)
def test_rank_of_this_process(config, monkeypatch, environment, given, expected):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert replace(config, **given).process() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 1}, "--rank and --world-size belong together"),
        ({"tile": 0}, "--tile 0: expected at least 1"),
        ({"tile": (4, 0)}, "--tile 0: expected at least 1"),
        ({"teacher": "mini"}, '--teacher "mini": expected .*; weights are given with --model now'),
        ({"method": 3}, 'teacher "styleid" takes a StyleIDConfig, not a int'),
        ({"device": "abacus"}, '--device "abacus" cannot be used here'),
        ({"rank": 2, "world_size": 2}, "--rank 2 --world-size 2: ranks count from 0"),
        ({"size": 0}, "--size 0: expected at least 1"),
        ({"style_crop": 8}, "--style-crop 8: expected at least 16"),
        ({"style_crop": 64, "crops_per_style": 0}, "--crops-per-style 0: expected at least 1"),
        ({"crops_per_style": 2}, "--crops-per-style needs the side of the crops"),
        ({"size": 100}, "--size 100: this teacher needs a multiple of 64, such as 128"),
        ({"seed": -1}, "--seed -1: expected at least 0"),
        ({"memory_budget": 0.0}, "--memory-budget 0.0: expected a number of GiB above 0"),
        ({"memory_budget": math.inf}, "--memory-budget inf: expected a number of GiB above 0"),
        ({"size": 10**8}, "--size 100000000: expected at most 32768"),
        ({"pairs": f"random:{'9' * 5000}"}, "expected a number from 1 after the colon"),
        ({"pairs": f"tiles:{'0' * 5000}1"}, "expected a number from 1 after the colon"),
        ({"pairs": "random:0"}, "expected a number from 1 after the colon"),
        ({"pairs": "tiles:some"}, "expected a number from 1 after the colon"),
    ],
)
def test_settings_that_cannot_be_used(config, changes, message):
    with pytest.raises(InputError, match=message):
        dump(replace(config, **changes))
    assert not config.out.exists()


def parse(flags):
    arguments = ["--content", "a", "--style", "b", "--out", "c", *flags.split()]
    return tyro.cli(dump_config_type_for(arguments), args=arguments)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--gamma 2", "gamma is 2.0; expected 0"),
        ("--steps 0", "num_steps is 0; expected 2 to 999"),
        ("--injection-layers", "injection_layers is empty"),
        ("--rank 3 --world-size 2", "ranks count from 0"),
        ("--size 0", "--size 0: expected at least 1"),
        ("--tile 3 0", "--tile 0: expected at least 1"),
        ("--pairs random:0", "expected a number from 1 after the colon"),
        ("--preset fast", "fast"),
        ("--teacher mini", "weights are given with --model now"),
        ("--teacher owner/name --steps 10", "weights are given with --model now"),
        ("--teacher", "--teacher"),
    ],
)
def test_impossible_values_are_wrong_usage(flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        parse(flags)
    assert end.value.code == 2
    # The parser draws a box around its message.
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flags", "method"),
    [
        ("", StyleIDConfig.paper()),
        ("--teacher styleid --steps 10", StyleIDConfig(num_steps=10)),
        ("--preset=port --gamma 0.3", replace(StyleIDConfig.port(), gamma=0.3)),
        ("--preset paper --temperature 2", StyleIDConfig(temperature=2.0)),
        (
            "--injection-layers 9 10 --no-adain-init",
            StyleIDConfig(injection_layers=(9, 10), adain_init=False),
        ),
    ],
)
def test_flags_of_the_method(flags, method):
    config = parse(flags)
    assert config.method == method and config.teacher == "styleid" and config.model == "mini"
    assert isinstance(config, DumpConfig)


@pytest.mark.parametrize(
    ("flags", "tile"), [("", None), ("--tile 4", 4), ("--tile 256 1", (256, 1))]
)
def test_flags_of_the_tile(flags, tile):
    assert parse(flags).tile == tile


def test_help_shows_the_defaults_of_the_preset(capsys):
    with pytest.raises(SystemExit):
        tyro.cli(dump_config_type("styleid", "port"), args=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--steps INT DDIM steps of the inversion" in text and "(default: 20)" in text
    assert "Query preservation" in text and "Folder of content pictures" in text


def test_crops_of_a_style_are_styles_of_their_own(config, pictures):
    dump(replace(config, style_crop=48, crops_per_style=2))
    dataset = TripletDataset(config.out)
    dataset.verify()
    whole = len(open_source(config.style))
    assert len(dataset.style_ids) == 2 * whole
    for name, image in zip(dataset.style_ids, dataset.styles, strict=True):
        file, _, place = name.removesuffix("]").partition("[48x48+")
        left, top = map(int, place.split("+"))
        pixels = read_image(Path(config.style) / file)
        square = pixels[top : top + 48, left : left + 48]
        np.testing.assert_array_equal(image, crop_and_resize(square, image.shape[0]))


def test_dump_to_a_bucket(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote = replace(config, out="memory://bucket/dump", rank=0, world_size=2)
    dump(remote)
    assert "GB for all shards before they are compressed, in memory://" in capsys.readouterr().out
    dump(replace(remote, rank=1))
    dump(config)
    there, here = TripletDataset(remote.out), TripletDataset(config.out)
    assert there.verify() == [] and there.fingerprint == here.fingerprint
    with pytest.raises(InputError, match=r"settings\.seed is 0 there, now 1"):
        dump(replace(remote, seed=1))
    fsspec.filesystem("memory").store.clear()


def test_an_address_that_cannot_be_used_is_refused_before_the_teacher_is_loaded(config):
    with pytest.raises(InputError, match="Protocol not known: nowhere"):
        dump(replace(config, out="nowhere://x", model="no/such/model"))


def test_dump_with_other_settings_is_refused(config):
    dump(config)
    with pytest.raises(InputError, match=r"settings\.styleid\.gamma is 0\.75 there, now 0\.3"):
        dump(replace(config, method=StyleIDConfig(num_steps=3, gamma=0.3)))


def as_before_other_teachers(root):
    """Rewrite a dataset as it was begun when StyleID was the only teacher."""
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["settings"]["teacher"]
    manifest["provenance"]["teacher"] = manifest["provenance"].pop("model")
    path.write_bytes(encode_json(manifest))


@pytest.mark.filterwarnings("error")  # provenance that differs is warned of
def test_dump_from_before_other_teachers_continues(config):
    dump(config)
    as_before_other_teachers(config.out)
    before = files(config.out)
    assert TripletDataset(config.out).verify() == []
    shutil.rmtree(config.out / "pairs-00001")
    dump(config)
    assert files(config.out) == before
    with pytest.raises(InputError, match=r"settings\.styleid\.gamma is 0\.75 there, now 0\.3"):
        dump(replace(config, method=StyleIDConfig(num_steps=3, gamma=0.3)))


def test_unusable_pictures_are_named_and_left_out(config, pictures, tmp_path, capsys):
    folder = tmp_path / "content"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "good.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    dump(replace(config, content=str(folder)))
    assert len(TripletDataset(config.out)) == 3
    captured = capsys.readouterr()
    assert "skipped broken.jpg: " in captured.err and "skipped tiny.png: " in captured.err
    assert "2 pictures were skipped" in captured.out


def test_command_prints_one_sentence_for_a_missing_folder(config):
    command = [sys.executable, SCRIPT, "--content", "no/such/folder", "--style", config.style]
    command += ["--out", str(config.out), "--model", config.model]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "error: 'no/such/folder' does not exist; expected pictures or a folder of them."
    )
    assert not config.out.exists()
