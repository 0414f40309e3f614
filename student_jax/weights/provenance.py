"""What a run was made from: checksums of weights, versions of libraries."""

import hashlib
import importlib.metadata

import jax
import numpy as np

LIBRARIES = ("flax", "grain", "jax", "jaxlib", "numpy", "optax", "orbax-checkpoint")


def weights_sha256(weights) -> str:
    """Checksum of a tree of arrays: the same for equal names, types, shapes and bytes.

    It does not depend on the file or the device that the arrays come from.
    """
    digest = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(weights):
        array = np.ascontiguousarray(array)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array)
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Version of each library that decides how a run computes."""
    return {name: importlib.metadata.version(name) for name in LIBRARIES}
