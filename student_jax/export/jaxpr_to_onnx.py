"""JAX programs to ONNX graphs: the operations that our models are made of, for any sizes.

A dimension of an argument may be symbolic (`jax.export.symbolic_shape`): JAX then traces the
program once for all sizes, and each size that it computes with becomes a few nodes of the graph.

Why not jax2onnx: version 0.17 requires orbax-checkpoint below 0.11.37, older than what our training
runs are saved with, so exporting would need an environment of its own. What it would replace is
this file; tests/student_jax/export compares the graphs with JAX, so that a later version can be
tried against them.
"""

import ast
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

from student_jax.nets import imagenet
from student_jax.nets.convolution import UPSAMPLED

OPSET = 18

Weights = Literal["float32", "float16"]
"""How a file keeps the weights; the computation is in float32 either way."""

# jax.lax's name of an elementwise operation to ONNX's.
_ELEMENTWISE = {
    "sub": "Sub", "div": "Div", "max": "Max", "min": "Min",
    "exp": "Exp", "log": "Log", "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "erf": "Erf",
    "neg": "Neg", "abs": "Abs", "sqrt": "Sqrt", "logistic": "Sigmoid", "pow": "Pow", "not": "Not",
    "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less", "eq": "Equal",
    "and": "And", "or": "Or", "copy": "Identity", "stop_gradient": "Identity",
}  # fmt: skip
# Functions that are one operation, or few, in ONNX.
_KNOWN_CALLS = (
    "relu", "leaky_relu", "reflect_sides", "with_edges", "normalise", "instance_norm", "to_cells",
    "from_cells", "linear_of_cells", "conv_by_taps", "upsample_conv", "edge_upsample_conv",
    "style_filter", "map_colours", "softmax", "clip", "instance_norm_of_cells",
)  # fmt: skip
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}

_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
_END = 2**31
"""Beyond every axis."""

# Operations that compute nothing.
_MOVES = (
    "reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice", "split",
    "concatenate", "convert_element_type", "copy",
)  # fmt: skip

# Operations on constants are carried out here and now, unless they only blow them up.
_LARGEST_FOLDED = 2**22


def to_onnx(
    function: Callable,
    parameters: Any,
    arguments: Sequence[jax.ShapeDtypeStruct],
    names: Sequence[str],
    outputs: Sequence[str],
    *,
    weights: Weights = "float32",
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """The ONNX model of a function of weights and float32 arrays.

    Args:
        function: weights and arrays in, a pytree of arrays out.
        parameters: the weights, a pytree of arrays.
        arguments: shapes of its further arguments; each symbolic variable is itself a dimension of
            one of them.
        names: of the model's inputs.
        outputs: of the model's outputs, in the order of `jax.tree.leaves`.
        weights: how they are kept in the file.
        metadata: further words to keep in the file.

    Raises:
        NotImplementedError: the function uses an operation that has no translation here.
    """

    def flat(*args: Any) -> list[jax.Array]:
        return jax.tree.leaves(function(*args))

    closed = jax.make_jaxpr(flat)(parameters, *arguments)
    graph = _Graph(weights)
    for name, argument in zip(names, arguments, strict=True):
        for axis, dim in enumerate(argument.shape):
            if not isinstance(dim, int):
                graph.dims.setdefault(
                    str(dim), graph.emit("Shape", [name], start=axis, end=axis + 1)
                )
    arrays = [np.asarray(x).view(_Weight) for x in jax.tree.leaves(parameters)]
    constants = [np.asarray(x) for x in closed.consts]
    results = graph.run(closed.jaxpr, constants, [*arrays, *names])
    for name, result in zip(outputs, results, strict=True):
        graph.emit("Identity", [result], outputs=[name])
    onnx_graph = helper.make_graph(
        graph.needed_nodes(outputs),
        "student",
        [_value(name, x.shape) for name, x in zip(names, arguments, strict=True)],
        [_value(name, x.shape) for name, x in zip(outputs, closed.out_avals, strict=True)],
        graph.needed_initializers(outputs),
    )
    model = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 9  # read by every runtime since 2023
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    return model


class _Weight(np.ndarray):
    """A constant of weights as they are. What was computed of them, which is little, is kept in
    float32: rounded, it would not be what rounded weights give."""


def _value(name: str, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    dims = [dim if isinstance(dim, int) else str(dim) for dim in shape]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)


class _Affine(NamedTuple):
    """An operation that also scales and shifts each of its c channels."""

    made: Callable[[Any, Any], str]
    """Its result, of scale and shift."""
    scale: Any
    shift: Any
    """Each [c]; no shift is None."""


class _Graph:
    """Nodes under construction. A value is its name, or a NumPy array when it is constant."""

    def __init__(self, weights: Weights):
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[tuple, onnx.TensorProto] = {}
        self._count = 0
        self.dims: dict[str, str] = {}
        """Values of the sizes that are symbolic, each int64 of shape [1], by JAX's expression."""
        self._narrow: dict[str, str] = {}
        """Of a value that was broadcast: with the same axes, before it was."""
        self._affine: dict[str, _Affine] = {}
        """Of a value: the operation that it is, which a later scale or shift can become part of."""
        self._convolutions: dict[str, tuple[list[Any], dict[str, Any], list[int]]] = {}
        """Inputs and attributes of the convolution that a value is, and how it was transposed."""
        self._cells: dict[str, str] = {}
        """Of a value that `to_cells` made: what it made it of."""
        self._spread: dict[str, str] = {}
        """Of a value that `from_cells` made: what it made it of."""

    def emit(self, op: str, inputs: Sequence[Any], outputs: list[str] | None = None, **attributes):
        """Add a node; returns the name of its first output."""
        if outputs is None:
            outputs = [self._new_name()]
        # An empty name is an input that is left out.
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        self._nodes.append(helper.make_node(op, names, outputs, **attributes))
        return outputs[0]

    def needed_nodes(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes that the outputs depend on, in order."""
        needed, nodes = set(outputs), []
        for node in reversed(self._nodes):
            if needed.intersection(node.output):
                nodes.append(node)
                needed.update(node.input)
        return nodes[::-1]

    def needed_initializers(self, outputs: Sequence[str]) -> list[onnx.TensorProto]:
        """The constants that those nodes take."""
        taken = {name for node in self.needed_nodes(outputs) for name in node.input}
        return [tensor for tensor in self._initializers.values() if tensor.name in taken]

    def _new_name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _constant(self, array) -> str:
        array = np.asanyarray(array)
        halved = self._weights == "float16" and isinstance(array, _Weight)
        key = (array.dtype, array.shape, array.tobytes(), halved)
        if key not in self._initializers:
            # from_array wants memory in row-major order.
            kept = np.array(array, np.float16 if halved else None, order="C")
            self._initializers[key] = numpy_helper.from_array(kept, self._new_name())
        name = self._initializers[key].name
        if self._initializers[key].data_type == TensorProto.FLOAT16:
            # In the runtime a constant is cast once, when the file is loaded.
            return self._cast_once(name)
        return name

    def _cast_once(self, name: str) -> str:
        wide = f"{name}_float32"
        if not any(node.output[0] == wide for node in self._nodes if node.op_type == "Cast"):
            self._nodes.append(helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT))
        return wide

    def run(self, jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Translate the equations; returns the values of the program's results."""
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))

        def read(variable):
            return (
                np.asarray(variable.val) if isinstance(variable, core.Literal) else values[variable]
            )

        for equation in jaxpr.eqns:
            inputs = [read(variable) for variable in equation.invars]
            values.update(zip(equation.outvars, self._translate(equation, inputs), strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _translate(self, equation, inputs) -> Sequence[Any]:
        name, params = equation.primitive.name, equation.params
        if self._is_folded(equation, inputs):
            results = equation.primitive.bind(*map(np.asarray, inputs), **params)
            results = results if equation.primitive.multiple_results else [results]
            moved = name in _MOVES and any(isinstance(x, _Weight) for x in inputs)
            made_of = _Weight if moved else np.ndarray
            return [np.asarray(x).view(made_of) for x in results]
        if name in _CALLS:
            return self._call(params, params[_CALLS[name]], inputs)
        if name == "scan":
            return self._scan(equation, inputs)
        if name in _ELEMENTWISE:
            return [self._elementwise(_ELEMENTWISE[name], inputs)]
        if name in _REDUCTIONS:
            axes = np.array(params["axes"], np.int64)
            return [self.emit(_REDUCTIONS[name], [inputs[0], axes], keepdims=0)]
        translate = getattr(self, f"_{name}", None)
        if translate is None:
            raise NotImplementedError(f"no ONNX translation of {name}")
        shapes = [variable.aval.shape for variable in equation.invars]
        result = translate(inputs, shapes, equation.outvars[0].aval, **params)
        return result if equation.primitive.multiple_results else [result]

    def _is_folded(self, equation, inputs) -> bool:
        """Whether an operation is carried out now: on constants, to a result of known size."""
        if any(isinstance(x, str) for x in inputs):
            return False
        if equation.primitive.name in (*_CALLS, "scan", "dim_as_value"):
            return False
        shapes = [variable.aval.shape for variable in equation.outvars]
        if not all(isinstance(dim, int) for shape in shapes for dim in shape):
            return False
        return sum(map(np.prod, shapes)) <= max([_LARGEST_FOLDED, *(np.size(x) for x in inputs)])

    def _call(self, params, inner, inputs):
        # What the runtimes have an operation for.
        if params.get("name") in _KNOWN_CALLS:
            shapes = [aval.shape for aval in inner.in_avals]
            result = getattr(self, f"_{params['name']}")(inputs, shapes)
            if result is not None:
                return [result]
        consts = [np.asarray(x) for x in getattr(inner, "consts", ())]
        return self.run(getattr(inner, "jaxpr", inner), consts, inputs)

    def _relu(self, inputs, shapes):
        return self.emit("Relu", inputs)

    def _leaky_relu(self, inputs, shapes):
        if len(inputs) != 2 or isinstance(inputs[1], str):
            return None
        return self.emit("LeakyRelu", inputs[:1], alpha=float(inputs[1]))

    def _reflect_sides(self, inputs, shapes, mode="reflect"):
        pads = np.array([0, 1, 1, 0, 0, 1, 1, 0], np.int64)
        return self.emit("Pad", [*inputs, pads], mode=mode)

    def _with_edges(self, inputs, shapes):
        return self._reflect_sides(inputs, shapes, mode="edge")

    def _by_channels(self, op, x, *inputs, **attributes):
        """An operation on the value's transpose, [b c h w]."""
        x = self.emit("Transpose", [x], perm=_TO_NCHW)
        return self.emit("Transpose", [self.emit(op, [x, *inputs], **attributes)], perm=_TO_NHWC)

    def _normalise(self, inputs, shapes):
        # Pixel by pixel, ONNX Runtime takes ten times as long. In three axes: from four it would
        # go back to pixels.
        x = self._planes(inputs[0])
        x = self.emit("Sub", [x, imagenet.MEAN.reshape(3, 1)])
        x = self.emit("Div", [x, imagenet.STD.reshape(3, 1)])
        return self._from_planes(x, shapes[0])

    def _planes(self, x):
        """[b 3 h*w] of [b h w 3]."""
        x = self.emit("Reshape", [x, np.array([0, -1, 3])])
        return self.emit("Transpose", [x], perm=[0, 2, 1])

    def _from_planes(self, x, shape):
        """[b h w c] of [b c h*w]."""
        b, h, w, c = shape
        x = self.emit("Reshape", [x, self._ints([b, c, h, w])])
        return self.emit("Transpose", [x], perm=_TO_NHWC)

    def _instance_norm(self, inputs, shapes):
        if len(inputs) != 1:  # some positions are hidden
            return None
        channels = shapes[0][-1]

        def norm(scale, shift):
            shift = np.zeros(channels, np.float32) if shift is None else shift
            options = {"epsilon": 1e-5}
            return self._by_channels("InstanceNormalization", *inputs, scale, shift, **options)

        return self._scaled_by(norm, np.ones(channels, np.float32), None)

    def _instance_norm_of_cells(self, inputs, shapes):
        if len(inputs) != 1:
            return None
        (x,) = inputs

        def mean(value):
            """Of each channel, for all positions of a cell."""
            for axis in (1, 2):  # one at a time, which ONNX Runtime does in a tenth of the time
                value = self.emit("ReduceMean", [value, np.array([axis], np.int64)])
            value = self.emit("Reshape", [value, np.array([0, 1, 4, -1])])
            value = self.emit("ReduceMean", [value, np.array([2], np.int64)])
            return self.emit("Concat", [value] * 4, axis=3)

        # To transpose the whole, for the operation that there is, takes longer.
        centred = self.emit("Sub", [x, mean(x)])
        squares = self.emit("Mul", [centred, centred])
        variance = self.emit("Add", [mean(squares), np.float32(1e-5)])
        deviation = self.emit("Sqrt", [variance])

        def scaled(scale, shift):
            value = self.emit("Mul", [centred, self.emit("Div", [scale, deviation])])
            return value if shift is None else self.emit("Add", [value, shift])

        return self._scaled_by(scaled, np.ones(shapes[0][-1], np.float32), None)

    def _scaled_by(self, made: Callable[[Any, Any], str], scale, shift) -> str:
        result = made(scale, shift)
        self._affine[result] = _Affine(made, scale, shift)
        return result

    def _rescaled(self, inputs, shapes, change: Callable[[_Affine, Any], Sequence]) -> str | None:
        """The operation that one input is, its scale and shift changed by the other's channels."""
        for i, j in ((0, 1), (1, 0)):
            affine = self._affine.get(inputs[i]) if isinstance(inputs[i], str) else None
            if affine and tuple(shapes[j]) == (*(1,) * (len(shapes[i]) - 1), shapes[i][-1]):
                by = self.emit("Reshape", [inputs[j], np.array([-1])])
                return self._scaled_by(affine.made, *change(affine, by))
        return None

    def _softmax(self, inputs, shapes):
        return self.emit("Softmax", inputs, axis=-1)

    def _clip(self, inputs, shapes):
        x, least, most = inputs
        if isinstance(least, str) or isinstance(most, str):
            return None
        return self.emit("Clip", [x, np.asarray(least, np.float32), np.asarray(most, np.float32)])

    def _to_cells(self, inputs, shapes):
        cells = self._by_channels("SpaceToDepth", *inputs, blocksize=2)
        self._cells[cells] = inputs[0]
        return cells

    def _from_cells(self, inputs, shapes):
        if inputs[0] in self._cells:
            return self._cells[inputs[0]]
        result = self._by_channels("DepthToSpace", *inputs, blocksize=2)
        self._spread[result] = inputs[0]
        return result

    def _linear_of_cells(self, inputs, shapes):
        x, kernel, bias = inputs
        kernel = kernel.reshape(2, 2, shapes[0][-1], -1).transpose(3, 2, 0, 1)
        x = self.emit("Transpose", [x], perm=_TO_NCHW)
        return self._convolution([x, kernel, bias], {"strides": [2, 2]}, _TO_NHWC)

    def _conv_by_taps(self, inputs, shapes):
        x, kernel = inputs
        x = self.emit("Transpose", [x], perm=_TO_NCHW)
        return self._convolution([x, kernel.transpose(3, 0, 1, 2)], {}, _TO_NHWC)

    def _edge_upsample_conv(self, inputs, shapes):
        x, kernel, bias = inputs
        channels, dim = kernel.shape[2:]
        # In the graph, so that a file has only the weights; a runtime computes it once.
        taps = self.emit("Einsum", [UPSAMPLED, UPSAMPLED, kernel], equation="pat,qbu,tucd->pqdcab")
        taps = self.emit("Reshape", [taps, np.array([4 * dim, channels, 3, 3])])
        padded = self._with_edges([x], shapes)
        cells = self._by_channels("Conv", padded, taps, np.tile(bias, 4))
        return self._from_cells([cells], shapes)

    def _upsample_conv(self, inputs, shapes):
        """As `_edge_upsample_conv` but at the border, which is upsampled first."""
        x, kernel, bias = inputs
        edges = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
        result = self.emit("Transpose", [self._edge_upsample_conv(inputs, shapes)], perm=_TO_NCHW)
        x = self.emit("Transpose", [x], perm=_TO_NCHW)

        def border(axis, inside, outside):
            """The first or last row or column."""
            y = self._cut(x, {axis: inside})
            y = self.emit("Resize", [y, "", np.array([1, 1, 2, 2], np.float32)], mode="linear")
            y = self.emit("Pad", [y, edges], mode="reflect")
            y = self.emit("Conv", [y, kernel.transpose(3, 2, 0, 1), bias])
            return self._cut(y, {axis: outside})

        for axis in (3, 2):
            first = border(axis, (0, 2, 1), (0, 1, 1))
            last = border(axis, (-2, _END, 1), (-1, _END, 1))
            inner = self._cut(result, {axis: (1, -1, 1)})
            result = self.emit("Concat", [first, inner, last], axis=axis)
        return self.emit("Transpose", [result], perm=_TO_NHWC)

    def _style_filter(self, inputs, shapes):
        x, kernels = inputs
        if shapes[0][0] != 1:  # a convolution has the same filters for a whole batch
            return None
        channels = shapes[0][-1]
        kernels = self.emit("Reshape", [kernels, np.array([9, channels])])
        kernels = self.emit("Transpose", [kernels], perm=[1, 0])
        kernels = self.emit("Add", [kernels, np.eye(9, dtype=np.float32)[4]])
        kernels = self.emit("Reshape", [kernels, np.array([channels, 1, 3, 3])])
        padded = self._reflect_sides([x], shapes)

        def filtered(scale, shift):
            scales = self.emit("Reshape", [scale, np.array([-1, 1, 1, 1])])
            scaled = self.emit("Mul", [kernels, scales])
            shifts = [] if shift is None else [shift]
            return self._by_channels("Conv", padded, scaled, *shifts, group=channels)

        return self._scaled_by(filtered, np.ones(channels, np.float32), None)

    def _map_colours(self, inputs, shapes):
        x, matrix, shift = inputs
        x = self.emit("Transpose", [x], perm=_TO_NCHW)
        x = self.emit("MatMul", [matrix, self.emit("Reshape", [x, np.array([0, 3, -1])])])
        x = self.emit("Add", [x, self.emit("Unsqueeze", [shift, np.array([2])])])
        return self._from_planes(x, shapes[0])

    def _scan(self, equation, inputs):
        """Loops are unrolled: ours are short (chunks of attention)."""
        params = equation.params
        if "ft_in" in params:  # jax 0.12
            num_consts, num_carry, _ = map(len, params["ft_in"].unpack())
        else:
            num_consts, num_carry = params["num_consts"], params["num_carry"]
        consts, carry, xs = (
            inputs[:num_consts],
            inputs[num_consts : num_consts + num_carry],
            inputs[num_consts + num_carry :],
        )
        body = params["jaxpr"]
        body_consts = [np.asarray(x) for x in getattr(body, "consts", ())]
        steps = []
        for i in range(params["length"]):
            part = [self.emit("Gather", [x, np.array(i)], axis=0) for x in xs]
            outs = self.run(getattr(body, "jaxpr", body), body_consts, [*consts, *carry, *part])
            carry = outs[:num_carry]
            steps.append(outs[num_carry:])
        stacked = [self._stack(list(ys), None, None, axis=0) for ys in zip(*steps, strict=True)]
        return [*carry, *stacked]

    def _dim(self, dim) -> Any:
        """A size as an int64 value of shape [1]: constant, or computed from the inputs' shapes.

        JAX writes a symbolic size as an expression of its variables (`jax.export.symbolic_shape`).
        """
        if isinstance(dim, int | np.integer):
            return np.array([dim], np.int64)
        return self._expression(ast.parse(str(dim).replace("^", "**"), mode="eval").body)

    def _expression(self, node: ast.AST) -> Any:
        text = ast.unparse(node)
        if text not in self.dims:
            match node:
                case ast.Constant(value):
                    return np.array([value], np.int64)
                case ast.UnaryOp(op=ast.USub(), operand=operand):
                    value = self.emit("Neg", [self._expression(operand)])
                case ast.BinOp(left=base, op=ast.Pow(), right=ast.Constant(exponent)):
                    value = self.emit("Pow", [self._expression(base), np.array([exponent])])
                case ast.BinOp(left=left, op=op, right=right):
                    name = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}[type(op)]
                    value = self.emit(name, [self._expression(left), self._expression(right)])
                case ast.Call(func=ast.Name("floordiv"), args=operands):
                    # Of sizes, which are not negative: ONNX rounds towards zero.
                    value = self.emit("Div", list(map(self._expression, operands)))
                case ast.Call(func=ast.Name("mod"), args=operands):
                    value = self.emit("Mod", list(map(self._expression, operands)))
                case _:
                    raise NotImplementedError(f"no ONNX translation of the size {text}")
            self.dims[text] = value
        return self.dims[text]

    def _ints(self, sizes: Sequence[Any]) -> Any:
        """Sizes as an int64 value of shape [n]."""
        parts = [self._dim(size) for size in sizes]
        if not any(isinstance(part, str) for part in parts):
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)
        return self.emit("Concat", parts, axis=0)

    def _elementwise(self, op: str, inputs: Sequence[Any]) -> str:
        """ONNX broadcasts by itself what JAX broadcasts before: at least one stays broadcast."""
        narrow = [x if isinstance(x, str) and x in self._narrow else None for x in inputs]
        full = [x for x in inputs if isinstance(x, str) and x not in self._narrow]
        keep = None if full else next(filter(None, narrow), None)
        return self.emit(
            op,
            [
                self._narrow[x] if x and x != keep else y
                for x, y in zip(narrow, inputs, strict=True)
            ],
        )

    def _square(self, inputs, shapes, aval, **_):
        return self.emit("Mul", [inputs[0], inputs[0]])

    def _integer_pow(self, inputs, shapes, aval, y, **_):
        if y == 2:
            return self.emit("Mul", [inputs[0], inputs[0]])
        return self.emit("Pow", [inputs[0], np.array(y, aval.dtype)])

    def _rsqrt(self, inputs, shapes, aval, **_):
        return self.emit("Reciprocal", [self.emit("Sqrt", inputs)])

    def _select_n(self, inputs, shapes, aval, **_):
        which, when_false, when_true = inputs
        return self._elementwise("Where", [which, when_true, when_false])

    def _convert_element_type(self, inputs, shapes, aval, **_):
        return self.emit("Cast", inputs, to=helper.np_dtype_to_tensor_dtype(aval.dtype))

    def _dim_as_value(self, inputs, shapes, aval, dim, **_):
        value = self.emit("Squeeze", [self._dim(dim)])
        return self.emit("Cast", [value], to=helper.np_dtype_to_tensor_dtype(aval.dtype))

    def _iota(self, inputs, shapes, aval, dimension, **_):
        length = self.emit("Squeeze", [self._dim(aval.shape[dimension])])
        x = self.emit("Range", [np.array(0, np.int64), length, np.array(1, np.int64)])
        x = self.emit("Cast", [x], to=helper.np_dtype_to_tensor_dtype(aval.dtype))
        return self._broadcast_in_dim([x], [(aval.shape[dimension],)], aval, (dimension,))

    def _cumsum(self, inputs, shapes, aval, axis, reverse, **_):
        return self.emit("CumSum", [inputs[0], np.array(axis, np.int64)], reverse=int(reverse))

    def _reshape(self, inputs, shapes, aval, **_):
        return self._reshaped(inputs[0], shapes[0], aval.shape)

    _squeeze = _expand_dims = _reshape

    def _reshaped(self, x, old, new):
        # 0: the size of this axis before; -1: what remains. So most need not be computed.
        sizes = [
            0 if not isinstance(size, int) and i < len(old) and size == old[i] else size
            for i, size in enumerate(new)
        ]
        unknown = [i for i, size in enumerate(sizes) if not isinstance(size, int)]
        if len(unknown) == 1:
            sizes[unknown[0]] = -1
        return self.emit("Reshape", [x, self._ints(sizes)])

    def _transpose(self, inputs, shapes, aval, permutation, **_):
        moved = [axis for axis in permutation if shapes[0][axis] != 1]
        if all(a < b for a, b in itertools.pairwise(moved)):
            return self._reshaped(inputs[0], shapes[0], aval.shape)  # nothing moves in memory
        return self.emit("Transpose", inputs, perm=list(permutation))

    def _broadcast_in_dim(self, inputs, shapes, aval, broadcast_dimensions, **_):
        shape = [1] * len(aval.shape)
        for source, target in enumerate(broadcast_dimensions):
            shape[target] = shapes[0][source]
        x = inputs[0]
        if tuple(shape) != tuple(shapes[0]):
            x = self._reshaped(x, shapes[0], shape)
        if tuple(shape) == tuple(aval.shape):
            return x
        wide = self.emit("Expand", [x, self._ints(aval.shape)])
        self._narrow[wide] = x if isinstance(x, str) else self._constant(x)
        return wide

    def _concatenate(self, inputs, shapes, aval, dimension, **_):
        return self.emit("Concat", inputs, axis=dimension)

    def _stack(self, inputs, shapes, aval, axis, **_):
        axes = np.array([axis], np.int64)
        return self.emit("Concat", [self.emit("Unsqueeze", [x, axes]) for x in inputs], axis=axis)

    def _split(self, inputs, shapes, aval, sizes, axis, **_):
        outputs = [self._new_name() for _ in sizes]
        self.emit("Split", [inputs[0], self._ints(sizes)], outputs=outputs, axis=axis)
        return outputs

    def _slice(self, inputs, shapes, aval, start_indices, limit_indices, strides, **_):
        strides = strides or [1] * len(start_indices)
        bounds = zip(start_indices, limit_indices, strides, shapes[0], strict=True)
        cut = {i: (a, b, s) for i, (a, b, s, n) in enumerate(bounds) if (a, b, s) != (0, n, 1)}
        return self._cut(inputs[0], cut)

    def _cut(self, x, cut: Mapping[int, tuple]):
        """Start, end and step of some axes."""
        if not cut:
            return x
        starts, ends, steps = zip(*cut.values(), strict=True)
        axes = np.array(list(cut), np.int64)
        return self.emit(
            "Slice", [x, self._ints(starts), self._ints(ends), axes, self._ints(steps)]
        )

    def _gather(self, inputs, shapes, aval, dimension_numbers, slice_sizes, **_):
        """One slice at a known position, or entries of an axis: what indexing becomes for symbolic
        shapes."""
        x, position = inputs
        axes = dimension_numbers.start_index_map
        others = tuple(axis for axis in range(len(aval.shape)) if axis not in axes)
        if len(shapes[1]) == 2 and len(axes) == 1 and dimension_numbers.offset_dims == others:
            last = np.array([1], np.int64)
            entries = (
                self.emit("Squeeze", [position, last])
                if isinstance(position, str)
                else position[:, 0].astype(np.int64)
            )
            return self.emit("Gather", [x, entries], axis=axes[0])
        if isinstance(position, str):
            raise NotImplementedError("no ONNX translation of gather at computed positions")
        if position.shape != (len(axes),):
            raise NotImplementedError("no ONNX translation of gather at several positions")
        cut = {
            axis: (int(start), start + slice_sizes[axis], 1)
            for axis, start in zip(axes, position, strict=True)
        }
        if self._is_border(x, shapes[0], cut):
            return self._without_padding(x)
        x = self._cut(x, cut)
        dropped = np.array(dimension_numbers.collapsed_slice_dims, np.int64)
        return self.emit("Squeeze", [x, dropped]) if dropped.size else x

    def _is_border(self, x, shape, cut) -> bool:
        """Whether all that is cut off is what a convolution made of its padding by one."""
        if x not in self._convolutions or cut != {i: (1, shape[i] - 1, 1) for i in (1, 2)}:
            return False
        _, attributes, _ = self._convolutions[x]
        return attributes.get("pads") == [1] * 4 and attributes.get("strides") == [1, 1]

    def _without_padding(self, x):
        inputs, attributes, permutation = self._convolutions[x]
        return self._convolution(inputs, attributes | {"pads": [0, 0, 0, 0]}, permutation)

    def _rev(self, inputs, shapes, aval, dimensions, **_):
        # From the last entry (-1) to before the first.
        return self._cut(inputs[0], {axis: (-1, -_END, -1) for axis in dimensions})

    def _pad(self, inputs, shapes, aval, padding_config, **_):
        low, high, interior = zip(*padding_config, strict=True)
        if any(interior) or min(*low, *high) < 0:
            raise NotImplementedError("no ONNX translation of interior or negative padding")
        return self.emit("Pad", [inputs[0], np.array([*low, *high], np.int64), inputs[1]])

    def _dot_general(self, inputs, shapes, aval, dimension_numbers, **_):
        (contract_a, contract_b), (batch_a, batch_b) = dimension_numbers
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        a = [next(letters) for _ in shapes[0]]
        b = [next(letters) for _ in shapes[1]]
        for i, j in zip((*contract_a, *batch_a), (*contract_b, *batch_b), strict=True):
            b[j] = a[i]
        free_a = [x for i, x in enumerate(a) if i not in (*contract_a, *batch_a)]
        free_b = [x for j, x in enumerate(b) if j not in (*contract_b, *batch_b)]
        result = "".join([*(a[i] for i in batch_a), *free_a, *free_b])
        # A plain product of matrices is one in every runtime; einsum may not be, or be slower.
        if (
            not batch_a
            and tuple(contract_a) == (len(a) - 1,)
            and contract_b == (0,)
            and len(b) == 2
        ):
            return self.emit("MatMul", inputs)
        leading = tuple(range(len(a) - 2))
        if tuple(batch_a) == tuple(batch_b) == leading and len(free_a) == len(free_b) == 1:
            x, y = inputs
            if a[-1] in free_a:
                x = self._swapped(x, len(a))
            if b[-1] not in free_b:
                y = self._swapped(y, len(b))
            return self.emit("MatMul", [x, y])
        return self.emit("Einsum", inputs, equation=f"{''.join(a)},{''.join(b)}->{result}")

    def _swapped(self, x, rank):
        return self.emit("Transpose", [x], perm=[*range(rank - 2), rank - 1, rank - 2])

    def _conv_general_dilated(
        self, inputs, shapes, aval, window_strides, padding, lhs_dilation, rhs_dilation,
        dimension_numbers, feature_group_count, batch_group_count, **_,
    ):  # fmt: skip
        if any(d != 1 for d in lhs_dilation) or batch_group_count != 1:
            raise NotImplementedError("no ONNX translation of transposed convolutions")
        image, kernel, result = dimension_numbers
        x = self.emit("Transpose", [inputs[0]], perm=list(image))
        if isinstance(inputs[1], str):
            weights = self.emit("Transpose", [inputs[1]], perm=list(kernel))
        else:
            weights = inputs[1].transpose(kernel)
        attributes = {
            "strides": list(window_strides),
            "pads": [side for sides in zip(*padding, strict=True) for side in sides],
            "dilations": list(rhs_dilation),
            "group": feature_group_count,
        }
        return self._convolution([x, weights], attributes, np.argsort(result).tolist())

    def _convolution(self, inputs, attributes, permutation):
        x = self.emit("Conv", inputs, **attributes)
        x = self.emit("Transpose", [x], perm=permutation)
        self._convolutions[x] = (inputs, attributes, permutation)
        return x

    def _add(self, inputs, shapes, aval, **_):
        x, bias = inputs
        convolution = self._convolutions.get(x) if isinstance(x, str) else None
        if convolution and len(convolution[0]) == 2 and np.size(bias) == aval.shape[-1]:
            # The runtimes do both at once.
            (image, kernel), attributes, permutation = convolution
            return self._convolution([image, kernel, bias.ravel()], attributes, permutation)
        cells = [self._spread.get(value) for value in inputs if isinstance(value, str)]
        if len(cells) == 2 and all(cells):
            return self._from_cells([self.emit("Add", cells)], shapes)

        def shift(affine, by):
            return affine.scale, by if affine.shift is None else self.emit(
                "Add", [affine.shift, by]
            )

        shifted = self._rescaled(inputs, shapes, shift)
        return shifted or self._elementwise("Add", inputs)

    def _mul(self, inputs, shapes, aval, **_):
        def scale(affine, by):
            return [
                None if x is None else self.emit("Mul", [x, by])
                for x in (affine.scale, affine.shift)
            ]

        scaled = self._rescaled(inputs, shapes, scale)
        return scaled or self._elementwise("Mul", inputs)

    def _reduce_window_max(
        self, inputs, shapes, aval, window_dimensions, window_strides, padding, **_
    ):
        # Over h and w of [b h w c].
        x = self.emit("Transpose", inputs, perm=_TO_NCHW)
        x = self.emit(
            "MaxPool",
            [x],
            kernel_shape=list(window_dimensions[1:3]),
            strides=list(window_strides[1:3]),
            pads=[side for sides in zip(*padding[1:3], strict=True) for side in sides],
        )
        return self.emit("Transpose", [x], perm=_TO_NHWC)


# Calls of other programs, and the parameter that holds them.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
