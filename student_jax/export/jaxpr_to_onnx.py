"""JAX programs to ONNX graphs: the operations that our models are made of, at fixed shapes.

Why not jax2onnx: version 0.17 requires orbax-checkpoint below 0.11.37, older than what our training
runs are saved with. What it would replace is this file; tests/student_jax/export compares the
graphs with JAX, so that a later version can be tried against them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import TensorProto, helper, numpy_helper

OPSET = 18

# jax.lax's name of an elementwise operation to ONNX's.
_ELEMENTWISE = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "exp": "Exp", "log": "Log", "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "erf": "Erf",
    "neg": "Neg", "abs": "Abs", "sqrt": "Sqrt", "logistic": "Sigmoid", "pow": "Pow", "not": "Not",
    "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less", "eq": "Equal",
    "and": "And", "or": "Or", "copy": "Identity", "stop_gradient": "Identity",
}  # fmt: skip
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}

# Operations on constants are carried out here and now, unless they only blow them up.
_LARGEST_FOLDED = 2**22


def to_onnx(
    function: Callable, arguments: Sequence[jax.ShapeDtypeStruct], names: Sequence[str], output: str
) -> onnx.ModelProto:
    """The ONNX model of a function of float32 arrays that returns one.

    Args:
        function: arrays in, one array out; what it closes over becomes the model's weights.
        arguments: shapes of its arguments.
        names: of the model's inputs.
        output: name of the model's output.

    Raises:
        NotImplementedError: the function uses an operation that has no translation here.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    graph = _Graph()
    inputs = []
    for name, argument in zip(names, arguments, strict=True):
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, argument.shape))
    (result,) = graph.run(closed.jaxpr, [np.asarray(x) for x in closed.consts], list(names))
    graph.emit("Identity", [result], outputs=[output])
    shape = closed.out_avals[0].shape
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    onnx_graph = helper.make_graph(graph.nodes, "student", inputs, outputs, graph.initializers)
    model = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 9  # read by every runtime since 2023
    onnx.checker.check_model(model)
    return model


class _Graph:
    """Nodes under construction. A value is its name, or a NumPy array when it is constant."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def emit(self, op: str, inputs: Sequence[Any], outputs: list[str] | None = None, **attributes):
        if outputs is None:
            self._count += 1
            outputs = [f"v{self._count}"]
        names = [x if isinstance(x, str) else self._constant(x) for x in inputs]
        self.nodes.append(helper.make_node(op, names, outputs, **attributes))
        return outputs[0]

    def _constant(self, array) -> str:
        self._count += 1
        name = f"c{self._count}"
        # from_array wants memory in row-major order.
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

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
        constant = not any(isinstance(x, str) for x in inputs)
        size = sum(np.prod(v.aval.shape) for v in equation.outvars)
        foldable = size <= max([_LARGEST_FOLDED, *(np.size(x) for x in inputs)])
        if constant and foldable and name not in (*_CALLS, "scan"):
            results = equation.primitive.bind(*inputs, **params)
            results = results if equation.primitive.multiple_results else [results]
            return [np.asarray(x) for x in results]
        if name in _CALLS:
            inner = params[_CALLS[name]]
            consts = [np.asarray(x) for x in getattr(inner, "consts", ())]
            return self.run(getattr(inner, "jaxpr", inner), consts, inputs)
        if name == "scan":
            return self._scan(equation, inputs)
        if name in _ELEMENTWISE:
            return [self.emit(_ELEMENTWISE[name], inputs)]
        if name in _REDUCTIONS:
            axes = np.array(params["axes"], np.int64)
            return [self.emit(_REDUCTIONS[name], [inputs[0], axes], keepdims=0)]
        translate = getattr(self, f"_{name}", None)
        if translate is None:
            raise NotImplementedError(f"no ONNX translation of {name}")
        shapes = [variable.aval.shape for variable in equation.invars]
        return [translate(inputs, shapes, equation.outvars[0].aval, **params)]

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

    def _square(self, inputs, shapes, aval, **_):
        return self.emit("Mul", [inputs[0], inputs[0]])

    def _integer_pow(self, inputs, shapes, aval, y, **_):
        return self.emit("Pow", [inputs[0], np.array(y, aval.dtype)])

    def _rsqrt(self, inputs, shapes, aval, **_):
        return self.emit("Reciprocal", [self.emit("Sqrt", inputs)])

    def _select_n(self, inputs, shapes, aval, **_):
        which, when_false, when_true = inputs
        return self.emit("Where", [which, when_true, when_false])

    def _convert_element_type(self, inputs, shapes, aval, **_):
        return self.emit("Cast", inputs, to=helper.np_dtype_to_tensor_dtype(aval.dtype))

    def _reshape(self, inputs, shapes, aval, **_):
        return self.emit("Reshape", [inputs[0], np.array(aval.shape, np.int64)])

    _squeeze = _expand_dims = _reshape

    def _transpose(self, inputs, shapes, aval, permutation, **_):
        return self.emit("Transpose", inputs, perm=list(permutation))

    def _broadcast_in_dim(self, inputs, shapes, aval, broadcast_dimensions, **_):
        shape = [1] * len(aval.shape)
        for source, target in enumerate(broadcast_dimensions):
            shape[target] = shapes[0][source]
        x = self.emit("Reshape", [inputs[0], np.array(shape, np.int64)])
        return self.emit("Expand", [x, np.array(aval.shape, np.int64)])

    def _concatenate(self, inputs, shapes, aval, dimension, **_):
        return self.emit("Concat", inputs, axis=dimension)

    def _stack(self, inputs, shapes, aval, axis, **_):
        axes = np.array([axis], np.int64)
        return self.emit("Concat", [self.emit("Unsqueeze", [x, axes]) for x in inputs], axis=axis)

    def _slice(self, inputs, shapes, aval, start_indices, limit_indices, strides, **_):
        axes = np.arange(len(start_indices))
        strides = strides or [1] * len(axes)
        bounds = (start_indices, limit_indices, axes, strides)
        return self.emit("Slice", [inputs[0], *(np.array(x, np.int64) for x in bounds)])

    def _rev(self, inputs, shapes, aval, dimensions, **_):
        count = len(dimensions)
        # From the last entry (-1) to before the first.
        bounds = ([-1] * count, [-(2**31)] * count, dimensions, [-1] * count)
        return self.emit("Slice", [inputs[0], *(np.array(x, np.int64) for x in bounds)])

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
        # A plain product of matrices is one in every runtime; einsum may not be.
        if (
            not batch_a
            and tuple(contract_a) == (len(a) - 1,)
            and contract_b == (0,)
            and len(b) == 2
        ):
            return self.emit("MatMul", inputs)
        return self.emit("Einsum", inputs, equation=f"{''.join(a)},{''.join(b)}->{result}")

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
        x = self.emit(
            "Conv",
            [x, weights],
            strides=list(window_strides),
            pads=[side for sides in zip(*padding, strict=True) for side in sides],
            dilations=list(rhs_dilation),
            group=feature_group_count,
        )
        return self.emit("Transpose", [x], perm=np.argsort(result).tolist())

    def _reduce_window_max(
        self, inputs, shapes, aval, window_dimensions, window_strides, padding, **_
    ):
        # Over h and w of [b h w c].
        x = self.emit("Transpose", inputs, perm=[0, 3, 1, 2])
        x = self.emit(
            "MaxPool",
            [x],
            kernel_shape=list(window_dimensions[1:3]),
            strides=list(window_strides[1:3]),
            pads=[side for sides in zip(*padding[1:3], strict=True) for side in sides],
        )
        return self.emit("Transpose", [x], perm=[0, 2, 3, 1])


# Calls of other programs, and the parameter that holds them.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
