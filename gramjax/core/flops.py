"""Matrix products of a traced function, counted exactly: every loop as often as it runs.

The compiler's own count (`cost_analysis`) takes the body of a loop once, so that a scan over 32 layers looks like one.
Here the jaxpr is walked instead: first what nobody reads is dropped, as the compiler does, then scans multiply.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params


def of_products(function: Callable[..., Any], *args: Any) -> int:
    """Floating-point operations (two per multiply-add) of all matrix products of `function(*args)`.

    The arguments may be abstract. Products inside remat count again where the backward pass repeats them.
    """
    from jax.interpreters import partial_eval

    closed = jax.make_jaxpr(function)(*args)
    needed, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: Any) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: Any) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    inner = [_count(jaxpr) for jaxpr in jaxprs_in_params(equation.params)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("a while loop with matrix products: how often it runs is not known before it runs")
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)
