"""The loss that scalar rewards, implicit rewards and verdicts share, and what its label smoothing means."""

import jax

from gramjax.core.errors import UserError

CONVENTIONS = ("flip", "uniform")


def pairwise_loss(difference: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """-(1 - eps) log sigmoid(d) - eps log sigmoid(-d), elementwise; equals -log sigmoid(d) + eps d."""
    return -jax.nn.log_sigmoid(difference) + label_smoothing * difference


def flip_probability(label_smoothing: float, convention: str = "flip") -> float:
    """eps, the probability that a label is flipped: the number itself, or half of one spread over both classes.

    Raises UserError for an unknown convention and for an eps outside [0, 0.5).
    """
    if convention not in CONVENTIONS:
        raise UserError(f"config.objective.smoothing_convention={convention!r} is not one of {', '.join(CONVENTIONS)}")
    eps = label_smoothing / 2 if convention == "uniform" else label_smoothing
    if not 0 <= eps < 0.5:
        raise UserError(f"config.objective.label_smoothing={label_smoothing} must give eps in [0, 0.5)")
    return eps
