"""A checksum of an array that does not depend on how the array lies on devices, and is computed where it lies.

Every element is mixed with its position and the results are added modulo 2^32, which is exact in any order: shards,
devices and processes give one number, at the speed of the memory, with nothing gathered on the host. A change inside
one element always shows, any other change but for one case in 2^64.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words that spreads every bit (the finaliser of MurmurHash3)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


@jax.jit
def sums(array: jax.Array) -> jax.Array:
    """The two words of the checksum, and how many elements are NaN or infinite."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place, stride = jnp.ones(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    mixed = _mix(words ^ (place * jnp.uint32(0x9E3779B9)))
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    bad = (~jnp.isfinite(array)).astype(jnp.uint32) if floating else jnp.zeros_like(words)
    # One reduction of three operands: each by itself is a pass over memory, and on a CPU ten times as slow as this.
    numbers, zero = (mixed, mixed * (2 * place + 1), bad), jnp.uint32(0)
    add = lambda one, other: tuple(a + b for a, b in zip(one, other))  # noqa: E731
    return jnp.stack(jax.lax.reduce(numbers, (zero,) * len(numbers), add, tuple(range(words.ndim))))


def checksums(leaves: Mapping[str, jax.Array], not_finite: set[str] | None = None) -> dict[str, str]:
    """16 hexadecimal digits per leaf: the same for the same values and dtype on any sharding.

    Leaves with NaN or infinities are added to `not_finite`: they are seen in the same pass.
    """
    found: dict[str, Any] = {}
    for name, leaf in leaves.items():
        found[name] = sums(leaf)
        if jax.default_backend() == "cpu":  # simulated devices share threads: several reductions in flight can lock up
            found[name].block_until_ready()
    words = {name: np.asarray(value) for name, value in found.items()}
    if not_finite is not None:
        not_finite.update(name for name, (*_, bad) in words.items() if bad)
    return {name: f"{int(first):08x}{int(second):08x}" for name, (first, second, _) in words.items()}
