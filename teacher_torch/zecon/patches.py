"""Random patches of pictures as ZeCon cuts and distorts them, without kornia, whose 0.6.4 it uses.

Two conventions of pixels meet in kornia's warps: matrices are normalised as if the corners of the
grid were the centres of the outer pixels, and the grid is sampled as if they were their outer
edges. A consistent convention costs a tenth of the gradient.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DEGREES = 15.0
"""Largest rotation."""
SHIFT = 0.1
"""Largest shift, a share of the side. Downwards alone: kornia makes (0, 0.1) and nothing for x of
the bare number."""
ASPECTS = (3 / 4, 4 / 3)
TRIALS = 10


@dataclass(frozen=True)
class PatchNumbers:
    """All random numbers of n patches of each of b pictures."""

    crop: Int[Tensor, "b n 4"] | None
    """x1 y1 x2 y2 of the part that is cut out, both ends included; None for whole pictures."""
    angle: Float[Tensor, "b n"]
    """Rotation in degrees."""
    shift: Float[Tensor, "b n"]
    """Downwards, in pixels of the patch."""
    corners: Float[Tensor, "b n 4 2"] | None
    """Where the corners go (x y; top left, top right, bottom right, bottom left), in pixels of the
    patch; None to leave the perspective alone."""

    def __getitem__(self, rows: slice) -> "PatchNumbers":
        """Those of some of the pictures."""
        return self._map(lambda tensors: tensors[0][rows], [self])

    @classmethod
    def cat(cls, numbers: "list[PatchNumbers]") -> "PatchNumbers":
        """Those of several batches of pictures as one."""
        return cls._map(torch.cat, numbers)

    @classmethod
    def _map(cls, function, numbers: "list[PatchNumbers]") -> "PatchNumbers":
        columns = {f.name: [getattr(n, f.name) for n in numbers] for f in fields(cls)}
        return cls(**{name: None if c[0] is None else function(c) for name, c in columns.items()})


def draw_patches(
    generator: torch.Generator,
    count: int,
    picture_px: tuple[int, int],
    patch_px: int,
    areas: tuple[float, float] | None,
    distortion: float,
) -> PatchNumbers:
    """Numbers of `count` patches of one picture, as a batch of one.

    Args:
        generator: on the CPU.
        count: of patches.
        picture_px: height and width of the picture.
        patch_px: side of the patches after cutting.
        areas: least and largest share of the picture's area; None for whole pictures.
        distortion: of the perspective, 0 for none.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    height, width = (patch_px, patch_px) if areas else picture_px
    crop = None
    if areas:
        crop = torch.tensor([_draw_crop(uniform, picture_px, areas) for _ in range(count)])[None]
    angle = uniform(-DEGREES, DEGREES, 1, count)
    shift = uniform(0.0, SHIFT * height, 1, count)
    corners = None
    if distortion:
        x, y = width - 1, height - 1
        start = torch.tensor([[0, 0], [x, 0], [x, y], [0, y]], dtype=torch.float32)
        inwards = torch.tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]], dtype=torch.float32)
        furthest = distortion * torch.tensor([width / 2, height / 2])
        corners = start + inwards * furthest * uniform(0.0, 1.0, 1, count, 4, 2)
    return PatchNumbers(crop, angle, shift, corners)


def _draw_crop(uniform, picture_px: tuple[int, int], areas: tuple[float, float]) -> list[int]:
    height, width = picture_px
    for _ in range(TRIALS):
        area = float(uniform(*areas, 1)) * height * width
        aspect = math.exp(float(uniform(*map(math.log, ASPECTS), 1)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w, h = width, height
    x, y = (int(float(uniform(0, room + 1, 1))) for room in (width - w, height - h))
    return [x, y, x + w - 1, y + h - 1]


def cut_patches(
    images: Float[Tensor, "b 3 h w"], numbers: PatchNumbers, patch_px: int
) -> Float[Tensor, "bn 3 p q"]:
    """The patches of the first picture, then of the second and so on, in [-1, 1].

    Rotation and shift continue the border; beyond the perspective there is 0, a middle grey.
    """
    pieces = torch.cat(list(_crops(images, numbers, patch_px)))
    moved = _move(pieces, numbers.angle.flatten(), numbers.shift.flatten())
    if numbers.corners is None:
        return moved
    return _distort(moved, numbers.corners.flatten(0, 1))


def _crops(images: Tensor, numbers: PatchNumbers, patch_px: int) -> Iterator[Tensor]:
    for row, image in enumerate(images):
        if numbers.crop is None:
            yield image.expand(numbers.angle.shape[1], -1, -1, -1)
            continue
        for x1, y1, x2, y2 in numbers.crop[row].tolist():
            piece = image[None, :, y1 : y2 + 1, x1 : x2 + 1]
            yield F.interpolate(piece, (patch_px, patch_px), mode="bilinear", align_corners=True)


def _move(images: Tensor, angle: Float[Tensor, " n"], shift: Float[Tensor, " n"]) -> Tensor:
    """Rotate about the middle and shift downwards."""
    height, width = images.shape[-2:]
    radians = angle * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    x, y = (width - 1) / 2, (height - 1) / 2
    zero = torch.zeros_like(cos)
    matrix = torch.stack(
        [
            torch.stack([cos, -sin, (1 - cos) * x + sin * y], -1),
            torch.stack([sin, cos, -sin * x + (1 - cos) * y + shift], -1),
            torch.stack([zero, zero, zero + 1], -1),
        ],
        1,
    )
    inverse = torch.linalg.inv(_normalised(matrix, height, width))[:, :2]
    grid = F.affine_grid(inverse.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _distort(images: Tensor, corners: Float[Tensor, "n 4 2"]) -> Tensor:
    """Move the corners inwards."""
    height, width = images.shape[-2:]
    x, y = width - 1, height - 1
    start = torch.tensor([[0, 0], [x, 0], [x, y], [0, y]]).to(corners).expand_as(corners)
    inverse = torch.linalg.inv(_normalised(_perspective(start, corners), height, width))
    rows, columns = (torch.linspace(-1, 1, n) for n in (height, width))
    points = torch.stack(
        [
            columns.expand(height, width),
            rows[:, None].expand(height, width),
            torch.ones(height, width),
        ],
        -1,
    )
    moved = points.to(inverse) @ inverse.transpose(1, 2)[:, None]
    grid = (moved[..., :2] / moved[..., 2:]).to(images)
    return F.grid_sample(images, grid, padding_mode="zeros", align_corners=False)


def _perspective(
    start: Float[Tensor, "n 4 2"], end: Float[Tensor, "n 4 2"]
) -> Float[Tensor, "n 3 3"]:
    """The homography that takes four points to four others."""
    (x, y), (u, v) = (points.double().unbind(-1) for points in (start, end))
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    system = torch.cat(
        [
            torch.stack([x, y, one, zero, zero, zero, -x * u, -y * u], -1),
            torch.stack([zero, zero, zero, x, y, one, -x * v, -y * v], -1),
        ],
        1,
    )
    solution = torch.linalg.solve(system, torch.cat([u, v], 1))
    return torch.cat([solution, one[:, :1]], 1).unflatten(1, (3, 3))


def _normalised(matrix: Float[Tensor, "n 3 3"], height: int, width: int) -> Tensor:
    """The same map between coordinates from -1 to 1, at the centres of the outer pixels."""
    to_unit = torch.tensor(
        [[2 / (width - 1), 0, -1], [0, 2 / (height - 1), -1], [0, 0, 1]], dtype=torch.float64
    )
    return to_unit @ matrix.double() @ torch.linalg.inv(to_unit)
