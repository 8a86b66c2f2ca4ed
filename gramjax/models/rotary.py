"""Rotary position embeddings (Su et al. 2021), half-rotation layout, with Llama 3's frequency scaling."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scaling:
    """How the rotary frequencies are stretched for longer contexts."""

    kind: str = "none"
    """`none`, `linear` or `llama3`."""
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def frequencies(head_dim: int, theta: float, scaling: Scaling) -> np.ndarray:
    """Rotation per position of each pair of channels, float32 [head_dim / 2]."""
    base = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    if scaling.kind == "none":
        return base.astype(np.float32)
    if scaling.kind == "linear":
        return (base / scaling.factor).astype(np.float32)
    if scaling.kind != "llama3":
        raise UserError(f"rope scaling {scaling.kind!r} is not one of none, linear, llama3")
    # Llama 3.1: long wavelengths are divided by the factor, short ones kept, those between are mixed.
    length = scaling.original_max_position_embeddings
    wavelength = 2 * math.pi / base
    mix = (length / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    mix = np.clip(mix, 0.0, 1.0)
    return ((1 - mix) * base / scaling.factor + mix * base).astype(np.float32)


def angles(positions_BT: jax.Array, frequencies_E: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine [batch, length, head_dim / 2] in float32."""
    angle = positions_BT[..., None].astype(jnp.float32) * frequencies_E
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BTHE: jax.Array, cos_BTE: jax.Array, sin_BTE: jax.Array) -> jax.Array:
    """Rotate channel i with channel i + E/2 by the angle of its position; computed in float32."""
    x = x_BTHE.astype(jnp.float32)
    # Whole rows times whole rows: XLA makes one plain loop of it, where halves that are joined again cost a branch.
    cos = jnp.concatenate([cos_BTE, cos_BTE], axis=-1)[:, :, None, :]
    sin = jnp.concatenate([-sin_BTE, sin_BTE], axis=-1)[:, :, None, :]
    return (x * cos + jnp.roll(x, x.shape[-1] // 2, axis=-1) * sin).astype(x_BTHE.dtype)
