"""Damage to files: bytes, and values in JSON, by a random generator."""

import json
import random
from typing import Any

EXTREMES = (None, True, -1, 0, 2**31, 10**9, 10**18, 1e308, float("nan"), "", "x" * 999, [], {})
"""What a value in JSON is replaced by."""


def damaged_bytes(encoded: bytes, rng: random.Random) -> bytes:
    """Bytes that were cut off, overwritten, removed, doubled or changed one by one."""
    data = bytearray(encoded)
    kind = rng.choice(("cut", "zeros", "noise", "remove", "double", "flip", "flip", "head"))
    start = rng.randrange(len(data))
    stop = min(len(data), start + rng.choice((1, 4, 64, 3000)))
    if kind == "cut":
        del data[start:]
    elif kind == "zeros":
        data[start:stop] = bytes(stop - start)
    elif kind == "noise":
        data[start:stop] = rng.randbytes(stop - start)
    elif kind == "remove":
        del data[start:stop]
    elif kind == "double":
        data[start:start] = data[start:stop]
    else:  # most formats hold what decides over memory in their first bytes
        within = min(len(data), 128) if kind == "head" else len(data)
        for _ in range(rng.choice((1, 3, 10))):
            data[rng.randrange(within)] ^= 1 << rng.randrange(8)
    return bytes(data)


def damaged_json(encoded: bytes, rng: random.Random) -> bytes:
    """JSON with a value or a key that is gone, or a value that nobody expects; or damaged bytes."""
    if rng.random() < 0.2:
        return damaged_bytes(encoded, rng)
    if rng.random() < 0.05:
        return b"[" * 100_000
    tree = json.loads(encoded)
    places = list(_places(tree))
    if not places or rng.random() < 0.05:
        return json.dumps(rng.choice(EXTREMES)).encode()
    parent, key = rng.choice(places)
    if rng.random() < 0.2:
        del parent[key]
    else:
        parent[key] = rng.choice(EXTREMES)
    return json.dumps(tree).encode()


def damaged(name: str, encoded: bytes, rng: random.Random) -> bytes:
    """Damage that suits a file of this name."""
    return (damaged_json if name.endswith(".json") else damaged_bytes)(encoded, rng)


def _places(tree: Any):
    """Every container in a tree with each of its keys or positions."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key])
