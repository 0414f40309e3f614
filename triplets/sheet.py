"""Pictures side by side in one picture, to look at results."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

GAP = 4  # pixels


def contact_sheet(
    rows: Sequence[Sequence[UInt8[np.ndarray, "h w 3"]]], captions: Sequence[str] = ()
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pictures of one size in rows, on white, with captions above the columns."""
    height, width = rows[0][0].shape[:2]
    font = ImageFont.load_default(size=max(10, width // 14))
    top = round(1.6 * font.size) if captions else 0
    columns = max(len(row) for row in rows)
    size = (columns * (width + GAP) + GAP, len(rows) * (height + GAP) + GAP + top)
    sheet = Image.new("RGB", size, "white")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            corner = (GAP + j * (width + GAP), top + GAP + i * (height + GAP))
            sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), corner)
    draw = ImageDraw.Draw(sheet)
    for j, caption in enumerate(captions):
        centre = GAP + j * (width + GAP) + width // 2
        draw.text((centre, top // 2 + GAP // 2), caption, "black", font, anchor="mm")
    return np.array(sheet)


def grid_sheet(
    contents: UInt8[np.ndarray, "b h w 3"],
    styles: UInt8[np.ndarray, "s h w 3"],
    stylised: UInt8[np.ndarray, "s b h w 3"],
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Contents along the top, styles down the left, their combinations inside."""
    corner = np.full_like(contents[0], 255)
    rows = [[style, *row] for style, row in zip(styles, stylised, strict=True)]
    return contact_sheet([[corner, *contents], *rows])
