"""The converter of guided-diffusion checkpoints: whole files, strictness, the published layout.

That converted networks compute what the authors' do is in `test_zecon_parity`.
"""

import pytest
import torch
from zecon_recipe import CONFIG, load, normal32, state

from teacher_torch import adm
from teacher_torch.denoisers import open_denoiser
from teacher_torch.teacher import Runtime
from triplets import InputError

SIZE = CONFIG["unet"]["image_size"]


def shapes(width, multiples, layers, attending, outputs=6):
    """Names and shapes of a network of guided-diffusion, counted as its constructor does."""
    names = {
        "time_embed.0": (4 * width, width),
        "time_embed.2": (4 * width, 4 * width),
        "input_blocks.0.0": (width, 3, 3, 3),
    }
    norms = {}

    def block(name, before, after):
        norms[f"{name}.in_layers.0"], norms[f"{name}.out_layers.0"] = before, after
        names[f"{name}.in_layers.2"] = (after, before, 3, 3)
        names[f"{name}.emb_layers.1"] = (2 * after, 4 * width)
        names[f"{name}.out_layers.3"] = (after, after, 3, 3)
        if before != after:
            names[f"{name}.skip_connection"] = (after, before, 1, 1)

    def attention(name, channels):
        norms[f"{name}.norm"] = channels
        names[f"{name}.qkv"] = (3 * channels, channels, 1)
        names[f"{name}.proj_out"] = (channels, channels, 1)

    channels, skips, number = width, [width], 1
    for level, multiple in enumerate(multiples):
        for _ in range(layers):
            block(f"input_blocks.{number}.0", channels, channels := multiple * width)
            if level in attending:
                attention(f"input_blocks.{number}.1", channels)
            skips.append(channels)
            number += 1
        if level < len(multiples) - 1:
            block(f"input_blocks.{number}.0", channels, channels)
            skips.append(channels)
            number += 1
    block("middle_block.0", channels, channels)
    attention("middle_block.1", channels)
    block("middle_block.2", channels, channels)
    number = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for layer in range(layers + 1):
            block(f"output_blocks.{number}.0", channels + skips.pop(), channels := multiple * width)
            if level in attending:
                attention(f"output_blocks.{number}.1", channels)
            if level and layer == layers:
                block(f"output_blocks.{number}.{1 + (level in attending)}", channels, channels)
            number += 1
    norms["out.0"], names["out.2"] = channels, (outputs, channels, 3, 3)
    return (
        {f"{name}.weight": shape for name, shape in names.items()}
        | {f"{name}.bias": (shape[0],) for name, shape in names.items()}
        | {f"{name}.{kind}": (n,) for name, n in norms.items() for kind in ("weight", "bias")}
    )


def test_shapes_are_those_of_the_fixture():
    """The list above, which the next test relies on, is the authors' for their tiny network."""
    ours = shapes(32, (1, 1, 2, 2), 2, {3})
    assert ours == {name: tuple(value.shape) for name, value in state("unet").items()}


def test_published_layout():
    """The 256 px file: six levels, attention on the last three, 552.8 M parameters."""
    with torch.device("meta"):
        given = {
            name: torch.empty(shape)
            for name, shape in shapes(256, (1, 1, 2, 2, 4, 4), 2, {3, 4, 5}).items()
        }
    network = adm.convert(given, 256)
    assert network.config.block_out_channels == [256, 256, 512, 512, 1024, 1024]
    assert sum(p.numel() for p in network.parameters()) == sum(v.numel() for v in given.values())
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(552.8, abs=0.05)


def test_a_file_becomes_a_model(tmp_path):
    torch.save(state("unet"), tmp_path / "model.pt")
    arguments = [str(tmp_path / "model.pt"), str(tmp_path / "model"), "--head-channels", "16"]
    adm.main([*arguments, "--size", str(SIZE)])
    runtime = Runtime(str(tmp_path / "model"), torch.device("cpu"), torch.float32)
    denoiser = open_denoiser(runtime)
    assert denoiser.native_size == SIZE and denoiser.side_multiple == 8
    with torch.no_grad():
        output = denoiser.network(normal32("x", 1, 3, 64, 64), 489).sample
    expected = torch.from_numpy(load("zecon_nets")["out_t489"])
    torch.testing.assert_close(output, expected, atol=3e-5, rtol=0)
    with pytest.raises(InputError, match="there already"):
        adm.main(arguments)


def convert(changed):
    return adm.convert(changed, SIZE, head_channels=16)


def test_strictness():
    whole = state("unet")
    without = {n: v for n, v in whole.items() if n != "middle_block.1.norm.bias"}
    with pytest.raises(InputError, match=r"mid_block\.attentions\.0\.group_norm\.bias is missing"):
        convert(without)
    with pytest.raises(InputError, match=r"output_blocks\.99\.0\.x\.weight is unknown"):
        convert(whole | {"output_blocks.99.0.x.weight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"conv_out\.weight is \[6, 32, 1, 1\], not \[6, 32, 3, 3"):
        convert(whole | {"out.2.weight": torch.zeros(6, 32, 1, 1)})
    with pytest.raises(InputError, match="class-conditional"):
        convert(whole | {"label_emb.weight": torch.zeros(1000, 128)})
    with pytest.raises(InputError, match="expected a guided-diffusion network"):
        convert({"conv.weight": torch.zeros(1)})


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint")
    with pytest.raises(InputError, match="cannot read"):
        adm.load_checkpoint(tmp_path / "text.pt")
    torch.save({"step": 3}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="other things than tensors"):
        adm.load_checkpoint(tmp_path / "other.pt")
