"""A student as ONNX files that take pictures of any size: the style apart, and both at once."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from student_jax.nets.attention import MultiHeadAttention
from student_jax.student import Memory, Student, student_name
from student_jax.students.modulated.modulation import StyleSwap
from triplets import InputError

ENCODE_STYLE, STYLIZE, STUDENT = "encode_style.onnx", "stylize.onnx", "student.onnx"
"""Names of the files."""


def onnx_files(
    model: Student, weights: str = "float32", *, batch: int | None = None
) -> dict[str, bytes]:
    """ONNX models (opset 18) by file name, for batches and pictures of any size.

    - `encode_style.onnx`: "style" [b h w 3] to what the student keeps of it, some outputs.
    - `stylize.onnx`: "content" [b h w 3] and these, by the same names, to "stylised" [b h w 3].
    - `student.onnx`: "content" and "style" to "stylised".

    All are float32 in [0, 1]. Sides that are no multiple of the student's stride are continued by
    the mirror image, and the result is cut; they need more than one stride. The files' metadata
    says which student it is, its strides, and whether styles can be mixed ("mixes") because as much
    is kept of each: by the means of vectors [b c], and by rows of each in sets of them [b n c].

    Args:
        weights: how the files keep them, "float32" or "float16"; the computation is in float32.
        batch: how many pictures they take at once, if it is known; one at a time is faster.

    Raises:
        InputError: onnx is missing.
    """
    try:
        from student_jax.export.jaxpr_to_onnx import to_onnx
    except ImportError as error:
        raise InputError('ONNX needs onnx: pip install "style-distil[export]".') from error
    graphdef, parameters = nnx.split(_without_parts(model))
    content_stride, style_stride = model.config.content_stride, model.config.style_stride

    def encode_style(parameters: nnx.State, style: Float[Array, "b h w 3"]) -> Memory:
        return nnx.merge(graphdef, parameters).encode_style(mirrored(style, style_stride))

    def decode(
        parameters: nnx.State, content: Float[Array, "b h w 3"], memory: Memory
    ) -> Float[Array, "b h w 3"]:
        _, h, w, _ = content.shape
        student = nnx.merge(graphdef, parameters)
        stylised = student.decode(mirrored(content, content_stride), [memory])
        return jnp.clip(stylised[:, :h, :w], 0, 1)

    content, style = _pictures({"": content_stride, "style_": style_stride}, batch)
    encoded = jax.eval_shape(encode_style, parameters, style)
    leaves, structure = jax.tree.flatten_with_path(encoded)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    memory = _inputs([leaf for _, leaf in leaves], content)
    metadata = {
        "student": student_name(model.config),
        "content_stride": str(content_stride),
        "style_stride": str(style_stride),
        "style_scale": str(model.config.style_scale),
        "memory": json.dumps(names),
        "mixes": json.dumps(
            all(isinstance(side, int) for leaf in memory for side in leaf.shape[1:])
        ),
    }

    def stylise(
        parameters: nnx.State, content: Float[Array, "b h w 3"], *memory: Array
    ) -> Float[Array, "b h w 3"]:
        return decode(parameters, content, structure.unflatten(memory))

    def both(
        parameters: nnx.State, content: Float[Array, "b h w 3"], style: Float[Array, "b h2 w2 3"]
    ) -> Float[Array, "b h w 3"]:
        return decode(parameters, content, encode_style(parameters, style))

    def encoded_file(function: Any, inputs: Mapping[str, Any], outputs: Sequence[str]) -> bytes:
        return to_onnx(
            function,
            parameters,
            list(inputs.values()),
            list(inputs),
            outputs,
            weights=weights,
            metadata=metadata,
        ).SerializeToString()

    styles, stylised = dict(zip(names, memory, strict=True)), ["stylised"]
    return {
        ENCODE_STYLE: encoded_file(encode_style, {"style": style}, names),
        STYLIZE: encoded_file(stylise, {"content": content} | styles, stylised),
        STUDENT: encoded_file(both, {"content": content, "style": style}, stylised),
    }


def mirrored(images: Float[Array, "b h w 3"], stride: int) -> Float[Array, "b h2 w2 3"]:
    """Pictures continued at their lower and right border by their mirror image, up to the next
    multiple of the stride."""
    for axis in (1, 2):
        side = images.shape[axis]
        missing = (side + stride - 1) // stride * stride - side
        end = jax.lax.slice_in_dim(images, side - missing, side, axis=axis)
        images = jnp.concatenate([images, jnp.flip(end, axis)], axis)
    return images


def _without_parts(model: Student) -> Student:
    """The student with attention in one part, since in how many depends on the size."""
    model = nnx.clone(model)
    for _, module in nnx.iter_modules(model):
        if isinstance(module, MultiHeadAttention | StyleSwap):
            module.score_bytes = math.inf
    return model


def _pictures(strides: Mapping[str, int], batch: int | None) -> list[jax.ShapeDtypeStruct]:
    """Batches of pictures of any size, each with sides by a name of their own and a stride."""
    sides = {f"{name}{side}": k for name, k in strides.items() for side in ("height", "width")}
    # Reflection and upsampling need two positions a side.
    constraints = [f"floordiv({side} + {k - 1}, {k}) >= 2" for side, k in sides.items()]
    names = ", ".join(("batch" if batch is None else str(batch), *sides))
    size, *dims = jax.export.symbolic_shape(names, constraints=constraints)
    return [
        jax.ShapeDtypeStruct((size, *dims[i : i + 2], 3), np.float32)
        for i in range(0, len(dims), 2)
    ]


def _inputs(leaves: Sequence[Any], content: jax.ShapeDtypeStruct) -> list[jax.ShapeDtypeStruct]:
    """Arrays of which each size that depends on the style's is a variable."""
    batch, height, *_ = content.shape
    variables: dict[str, Any] = {str(batch): batch}
    for dim in (dim for leaf in leaves for dim in leaf.shape):
        if not isinstance(dim, int) and str(dim) not in variables:
            name = f"size{len(variables)}"
            (variables[str(dim)],) = jax.export.symbolic_shape(name, scope=height.scope)
    return [
        jax.ShapeDtypeStruct(
            [dim if isinstance(dim, int) else variables[str(dim)] for dim in leaf.shape], leaf.dtype
        )
        for leaf in leaves
    ]
