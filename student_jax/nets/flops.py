"""Arithmetic of a program, counted in what JAX traced of it."""

import math

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_flops(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Floating-point operations of all matrix products and convolutions, 2 for a multiply-add.

    Loops count as often as they run (a `while` of unknown length once), all branches of a
    condition once. Unlike XLA's cost analysis this sees through loops, fused kernels and the
    rewriting of a backend, so it says what the algorithm takes, on any device.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    return sum(_count(equation) for equation in jaxpr.eqns)


def _count(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    shapes: list[tuple[int, ...]] = [
        getattr(variable.aval, "shape", ()) for variable in equation.invars
    ]
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        terms = math.prod(shapes[0][axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * terms
    if name == "conv_general_dilated":
        out_axis = params["dimension_numbers"].rhs_spec[0]
        terms = math.prod(shapes[1]) // shapes[1][out_axis]
        out_size = math.prod(equation.outvars[0].aval.shape)
        # Taps that fall on the zeros between dilated entries multiply nothing.
        return 2 * out_size * terms // math.prod(params["lhs_dilation"])
    if name.startswith("dot_product_attention_"):  # cuDNN: [b n k d] and [b m k d]
        (b, n, k, d), m = shapes[0], shapes[1][1]
        products = 5 if "bwd" in name else 2
        return products * 2 * b * k * n * m * d
    inner = [
        value
        for param in params.values()
        for value in (param if isinstance(param, tuple | list) else (param,))
        if isinstance(value, ClosedJaxpr | Jaxpr)
    ]
    return params.get("length", 1) * sum(map(count_flops, inner))
