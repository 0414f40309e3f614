"""Style pictures for prompts: what ZeCon makes of a few contents, or a picture that shows it.

    python -m teacher_torch.zecon.prompts --prompts "oil painting" mosaic --out runs/prompts \
        --model runs/adm --clip runs/clip-vit-base-patch16

ZeCon's style is a prompt, a triplet's is a picture, and a student is given pictures. So each prompt
gets one, whose file name is the prompt: a sheet of four contents that the prompt guides, or the
user's own (--style-picture "mosaic=tiles.jpg"). The folder is the --style of a dump.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from jaxtyping import UInt8
from tqdm import tqdm

from teacher_torch.devices import open_device
from teacher_torch.pixels import to_model_range, to_uint8
from teacher_torch.teacher import Key, Runtime
from teacher_torch.zecon.adapter import ZeConTeacher, open_zecon, prompt
from teacher_torch.zecon.config import ZeConConfig
from triplets import InputError, load_images, open_source, read_image, write_image
from triplets.bundled import SAMPLES

COLUMNS = 2
"""Of a sheet, and its rows."""
SUFFIX = ".png"


@dataclass(frozen=True)
class PromptsConfig:
    """Make a style picture for each prompt."""

    prompts: tuple[str, ...]
    """Texts such as "oil painting of flowers"."""
    out: Path
    """Folder of the style pictures; those that are there stay."""
    style_picture: tuple[str, ...] = ()
    """PROMPT=FILE: take this picture for the prompt in place of a sheet."""
    content: str = str(SAMPLES / "content")
    """Folder of pictures, or tfds:NAME:SPLIT, of which the first four are on the sheets; by default
    the bundled samples."""
    model: str = "mini"
    """Weights, as of the dump."""
    size: int | None = None
    """Side of the sheets in pixels; by default the model's native size."""
    device: str | None = None
    """"cuda", "mps" or "cpu"; by default the best that is there."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the model."""
    seed: int = 0
    """Of the random numbers."""
    method: tyro.conf.OmitArgPrefixes[ZeConConfig] = field(default_factory=ZeConConfig.paper)
    """ZeCon's settings, best those of the dump."""

    def __post_init__(self):
        if self.method.guide != "clip_text":
            raise InputError(
                f'--guide {self.method.guide} knows no prompts; expected "clip_text", or style '
                "pictures as they are."
            )
        for text in self.prompts:
            file_name(text)
        if len(set(self.prompts)) < len(self.prompts) or not self.prompts:
            raise InputError(f"--prompts {' '.join(self.prompts)}: expected different ones.")
        self._split()

    def pictures(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The user's pictures, by prompt.

        Raises:
            InputError: one that is not there, or is not a picture.
        """
        read = {}
        for text, file in self._split().items():
            if not file.is_file():
                raise InputError(f'--style-picture "{text}={file}": there is no such file.')
            read[text] = read_image(file)
        return read

    def _split(self) -> dict[str, Path]:
        found = {}
        for pair in self.style_picture:
            text, separator, file = pair.rpartition("=")
            if not separator or text not in self.prompts or text in found:
                raise InputError(
                    f'--style-picture "{pair}": expected PROMPT=FILE with one of the --prompts, '
                    "each once."
                )
            found[text] = Path(file)
        return found


def file_name(text: str) -> str:
    """The name of a style picture that stands for a prompt: "oil_painting.png"; see `prompt`.

    Raises:
        InputError: no such name stands for this prompt.
    """
    name = text.replace(" ", "_") + SUFFIX
    if prompt(name) != text or name.startswith(".") or "\\" in name or not text.isprintable():
        raise InputError(
            f'--prompts "{text}": expected words without slashes and underscores and without a '
            "space at either end, because the style picture's file name is the prompt."
        )
    return name


def make_style_pictures(config: PromptsConfig) -> None:
    """Write what is missing of the folder; see `PromptsConfig`.

    Raises:
        InputError: a picture, a model or a guide that cannot be used.
        OSError: the disk is full and so on.
    """
    given = config.pictures()
    config.out.mkdir(parents=True, exist_ok=True)
    missing = [text for text in config.prompts if not (config.out / file_name(text)).exists()]
    guided = [text for text in missing if text not in given]
    for text in missing:
        if text in given:
            write_image(config.out / file_name(text), given[text])
    if guided:
        device = open_device(config.device)
        dtype = getattr(torch, config.dtype)
        teacher = open_zecon(config.method, Runtime(config.model, device, dtype))
        size = config.size or teacher.size_px
        contents, _ = load_images(open_source(config.content), size, limit=COLUMNS**2)
        for text in tqdm(guided, desc="sheets", unit="prompt"):
            sheet = guided_sheet(teacher, contents.images, contents.ids, text, config.seed)
            write_image(config.out / file_name(text), sheet)
    print(f"{len(config.prompts)} style pictures are in {config.out}; {len(missing)} are new.")


def guided_sheet(
    teacher: ZeConTeacher,
    contents: UInt8[np.ndarray, "b h w 3"],
    ids: Sequence[str],
    text: str,
    seed: int,
) -> UInt8[np.ndarray, "h w 3"]:
    """The middles of contents that a prompt guides, side by side, in the size of one content.

    They are not reduced, so strokes are as large as in the stylised pictures. Fewer contents than
    four come again.
    """
    style = file_name(text)
    images, count = to_model_range(contents), len(contents)
    prepared = (
        teacher.prepare("content", images, [Key(seed, content=name) for name in ids]).to("cpu"),
        teacher.prepare("style", images[:1], [Key(seed, style=style)]).to("cpu"),
    )
    pairs = torch.tensor([[i, 0] for i in range(count)])
    keys = [Key(seed, name, style) for name in ids]
    made = [
        to_uint8(picture.detach()[None])[0] for picture in teacher.stylise(*prepared, pairs, keys)
    ]
    height, width = (side // COLUMNS for side in contents.shape[1:3])
    top, left = (contents.shape[1] - height) // 2, (contents.shape[2] - width) // 2
    middles = [picture[top : top + height, left : left + width] for picture in made]
    cells = [middles[i % count] for i in range(COLUMNS**2)]
    rows = [np.concatenate(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)]
    return np.concatenate(rows)


if __name__ == "__main__":
    try:
        make_style_pictures(tyro.cli(PromptsConfig, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
