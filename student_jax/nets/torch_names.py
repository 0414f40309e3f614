"""Named arrays to an NNX module and back: PyTorch's names and layouts, or our own.

A `Table` lists every name of a file with the variables of ours that it fills and the transform
between the two layouts. Both directions, and every check, read the same table.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


class Transform(NamedTuple):
    """A change of layout; `to_torch` is the exact inverse of `from_torch`."""

    from_torch: Callable[[np.ndarray], tuple[np.ndarray, ...]]
    to_torch: Callable[..., np.ndarray]


SAME = Transform(lambda x: (x,), lambda x: x)
# [out, in] to [in, out]
LINEAR = Transform(lambda x: (x.T,), lambda x: x.T)
# [out, in, h, w] to [h, w, in, out]
CONV = Transform(lambda x: (x.transpose(2, 3, 1, 0),), lambda x: x.transpose(3, 2, 0, 1))
# [out, in, 1, 1] to [in, out]
POINTWISE_CONV = Transform(lambda x: (x[:, :, 0, 0].T,), lambda x: x.T[:, :, None, None])
# Query, key and value in one [3 out, in] to three [in, out]; their biases likewise.
FUSED_LINEAR = Transform(
    lambda x: tuple(part.T for part in np.split(x, 3)), lambda *x: np.concatenate([p.T for p in x])
)
FUSED_BIAS = Transform(lambda x: tuple(np.split(x, 3)), lambda *x: np.concatenate(x))
# Batch norm's step counter, which only a momentum of None would read.
COUNTER = Transform(lambda x: (), lambda: np.zeros((), np.int64))


class Entry(NamedTuple):
    """The variables, by dotted path, that one named array fills."""

    paths: tuple[str, ...]
    transform: Transform


Table = dict[str, Entry]


def layer(torch_name: str, path: str, transform: Transform, bias: bool = True) -> Table:
    """A convolution or linear layer."""
    table = {f"{torch_name}.weight": Entry((f"{path}.kernel",), transform)}
    if bias:
        table[f"{torch_name}.bias"] = Entry((f"{path}.bias",), SAME)
    return table


def norm(torch_name: str, path: str) -> Table:
    """Scale and bias of a normalisation."""
    return {
        f"{torch_name}.weight": Entry((f"{path}.scale",), SAME),
        f"{torch_name}.bias": Entry((f"{path}.bias",), SAME),
    }


def batch_norm(torch_name: str, path: str, counter: bool) -> Table:
    """A batch norm with its running statistics, and the step counter where it has one."""
    table = norm(torch_name, path) | {
        f"{torch_name}.running_mean": Entry((f"{path}.mean",), SAME),
        f"{torch_name}.running_var": Entry((f"{path}.var",), SAME),
    }
    if counter:
        table[f"{torch_name}.num_batches_tracked"] = Entry((), COUNTER)
    return table


def own_names(build: Callable[[], nnx.Module]) -> Table:
    """The table of a module's own names and layouts: each variable by its dotted path."""
    variables, _ = _flatten(nnx.state(nnx.eval_shape(build)))
    return {path: Entry((path,), SAME) for path in variables}


def _flatten(state) -> tuple[dict[str, Any], Any]:
    leaves, treedef = jax.tree.flatten_with_path(state)
    # The last key of a leaf's path leads into the variable and has no name of ours.
    named = {".".join(str(key.key) for key in path if hasattr(key, "key")): x for path, x in leaves}
    return named, treedef


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The names in which one of the regular expressions is found, in order."""
    pattern = re.compile("|".join(patterns) or r"(?!)")
    return sorted(name for name in names if pattern.search(name))


def fill(
    build: Callable[[], nnx.Module],
    table: Table,
    arrays: Mapping[str, np.ndarray],
    ignored: Iterable[str] = (),
) -> nnx.Module:
    """Build a module from named arrays, without initialising it first.

    Args:
        build: makes the module; it is only traced, for its structure and shapes.
        table: of the module's architecture.
        arrays: arrays by the table's names; floats of any width become those of the module.
        ignored: regular expressions of names that are left out, as if they were not there.

    Raises:
        ValueError: one message that lists all missing, unexpected and wrongly shaped arrays.
    """
    graphdef, state = nnx.split(nnx.eval_shape(build))
    targets, treedef = _flatten(state)

    left_out = set(matching(arrays, ignored))
    filled = {path for paths, _ in table.values() for path in paths}
    faults = [f"no name fills: {path}" for path in targets if path not in filled]
    variables = {}
    for name, (paths, transform) in table.items():
        if name not in arrays or name in left_out:
            faults.append(f"missing: {name}")
            continue
        array = np.asarray(arrays[name])
        # One number that is repeated: a file may ask for shapes that no memory holds.
        expected = transform.to_torch(
            *(np.broadcast_to(np.float32(0), targets[path].shape) for path in paths)
        ).shape
        if array.shape != expected:
            faults.append(f"wrong shape: {name} is {array.shape}, expected {expected}")
            continue
        variables |= zip(paths, transform.from_torch(array), strict=True)
    faults += [
        f"unexpected: {name}" for name in arrays if name not in table and name not in left_out
    ]
    if faults:
        raise ValueError("these weights do not fit the model:\n  " + "\n  ".join(faults))

    leaves = [jnp.asarray(variables[path], target.dtype) for path, target in targets.items()]
    return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))


def named_arrays(model: nnx.Module, table: Table) -> dict[str, np.ndarray]:
    """The module's weights by the table's names: the inverse of `fill`."""
    sources, _ = _flatten(nnx.state(model))
    return {
        # In C order: safetensors writes the bytes of other orders as they lie.
        name: np.array(
            transform.to_torch(*(np.asarray(sources[path]) for path in paths)), order="C"
        )
        for name, (paths, transform) in table.items()
    }
