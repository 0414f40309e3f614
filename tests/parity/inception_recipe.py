"""Weights of an Inception v3 drawn from each tensor's name, so that no file is needed."""

import zlib

import numpy as np

BLOCKS = {
    **{f"Mixed_5{x}": "a" for x in "bcd"},
    "Mixed_6a": "b",
    **{f"Mixed_6{x}": "c" for x in "bcde"},
    "Mixed_7a": "d",
    **{f"Mixed_7{x}": "e" for x in "bc"},
}
# Name, output channels, input channels (None: those of the block), kernel height and width.
BRANCHES = {
    "a": [
        ("branch1x1", 64, None, 1, 1),
        ("branch5x5_1", 48, None, 1, 1),
        ("branch5x5_2", 64, 48, 5, 5),
        ("branch3x3dbl_1", 64, None, 1, 1),
        ("branch3x3dbl_2", 96, 64, 3, 3),
        ("branch3x3dbl_3", 96, 96, 3, 3),
    ],
    "b": [
        ("branch3x3", 384, None, 3, 3),
        ("branch3x3dbl_1", 64, None, 1, 1),
        ("branch3x3dbl_2", 96, 64, 3, 3),
        ("branch3x3dbl_3", 96, 96, 3, 3),
    ],
    "d": [
        ("branch3x3_1", 192, None, 1, 1),
        ("branch3x3_2", 320, 192, 3, 3),
        ("branch7x7x3_1", 192, None, 1, 1),
        ("branch7x7x3_2", 192, 192, 1, 7),
        ("branch7x7x3_3", 192, 192, 7, 1),
        ("branch7x7x3_4", 192, 192, 3, 3),
    ],
    "e": [
        ("branch1x1", 320, None, 1, 1),
        ("branch3x3_1", 384, None, 1, 1),
        ("branch3x3_2a", 384, 384, 1, 3),
        ("branch3x3_2b", 384, 384, 3, 1),
        ("branch3x3dbl_1", 448, None, 1, 1),
        ("branch3x3dbl_2", 384, 448, 3, 3),
        ("branch3x3dbl_3a", 384, 384, 1, 3),
        ("branch3x3dbl_3b", 384, 384, 3, 1),
        ("branch_pool", 192, None, 1, 1),
    ],
}
INPUTS = {"Mixed_5b": 192, "Mixed_5c": 256, "Mixed_5d": 288, "Mixed_6a": 288}
INPUTS |= {f"Mixed_6{x}": 768 for x in "bcde"} | {"Mixed_7a": 768}
INPUTS |= {"Mixed_7b": 1280, "Mixed_7c": 2048}
POOL_CHANNELS = {"Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64}
MIDDLE = {"Mixed_6b": 128, "Mixed_6c": 160, "Mixed_6d": 160, "Mixed_6e": 192}
STEM = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}


def shapes() -> dict[str, tuple[int, int, int, int]]:
    """Kernel shape [out in h w] of each convolution by its name."""
    found = dict(STEM)
    for block, kind in BLOCKS.items():
        if kind == "c":
            m = MIDDLE[block]
            branches = [("branch1x1", 192, None, 1, 1), ("branch7x7_1", m, None, 1, 1)]
            branches += [("branch7x7_2", m, m, 1, 7), ("branch7x7_3", 192, m, 7, 1)]
            branches += [("branch7x7dbl_1", m, None, 1, 1), ("branch7x7dbl_2", m, m, 7, 1)]
            branches += [("branch7x7dbl_3", m, m, 1, 7), ("branch7x7dbl_4", m, m, 7, 1)]
            branches += [("branch7x7dbl_5", 192, m, 1, 7), ("branch_pool", 192, None, 1, 1)]
        else:
            branches = list(BRANCHES[kind])
            if kind == "a":
                branches.append(("branch_pool", POOL_CHANNELS[block], None, 1, 1))
        for name, out, inner, height, width in branches:
            found[f"{block}.{name}"] = (out, inner or INPUTS[block], height, width)
    return found


def weights() -> dict[str, np.ndarray]:
    """Every tensor of the feature part, float32, by torchvision's names."""
    drawn = {}
    for name, shape in shapes().items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        drawn[f"{name}.conv.weight"] = rng.standard_normal(shape, np.float32) * np.float32(
            np.sqrt(2 / np.prod(shape[1:]))
        )
        for part, mean in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            noise = rng.uniform(-0.2, 0.2, shape[0])
            drawn[f"{name}.bn.{part}"] = (mean + noise).astype(np.float32)
    return drawn
