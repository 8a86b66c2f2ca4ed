"""GRAM (arXiv 2506.14175): a language model that reads two answers and writes which is better.

Stage `pretrain` learns from pairs without labels: L = -log p([first, second] | prompt), next-token cross-entropy over
both answers, the second conditioned on the first. Stage `finetune` learns the verdict, one token, with label smoothing.
With Z the logits of the two verdict tokens where the verdict is predicted and d = Z(right) - Z(wrong), equation (1)
over the two candidates is a Bradley-Terry loss with a linear penalty on the margin (equation 2):

    L = -(1 - eps) log sigmoid(d) - eps log sigmoid(-d) = -log sigmoid(d) + eps d

The minimum lies at the finite margin d* = log((1 - eps) / eps). Over the whole vocabulary a format term is added
(equation 3): L - log m, with m the probability of the two verdicts together.

With `dpo_beta` the judge is trained by DPO between the right verdict and the wrong one: the vocabulary's normaliser
cancels in log pi(right) - log pi(wrong), so d is replaced by dpo_beta (d - d_reference).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gramjax.core.checks import at_least_zero
from gramjax.core.errors import UserError
from gramjax.data.text import example
from gramjax.models import heads

ROW_TYPES = ("preference", "pair_unlabelled")
HEADS = ("tokens",)


@dataclasses.dataclass(frozen=True)
class Config:
    """The stage and the smoothing of its labels."""

    stage: str = "finetune"
    """`pretrain` (unlabelled pairs) or `finetune` (verdicts)."""
    label_smoothing: float = 0.05
    """How much; what the number means is said by `smoothing_convention`."""
    smoothing_convention: str = "flip"
    """`flip`: eps, the probability of the wrong verdict in the target. `uniform`: alpha spread evenly over both
    verdicts, as training frameworks do, so that eps = alpha / 2 (the released 0.1 is eps = 0.05)."""
    label_space: str = "candidates"
    """Softmax over the two verdicts (`candidates`) or over the vocabulary (`full`)."""
    dpo_beta: float = 0.0
    """Above 0: DPO between the verdicts, with this beta, against the reference model (stage `finetune`)."""
    verdict_ids: tuple[int, int] = (-1, -1)
    """Token ids of the two verdicts; -1: resolved from the tokenizer when the run is built."""


def resolve(config: Config, renderer: Any) -> Config:
    """The config with the verdict ids of the tokenizer, checked."""
    for name, known in {
        "stage": ("pretrain", "finetune"),
        "smoothing_convention": ("flip", "uniform"),
        "label_space": ("candidates", "full"),
    }.items():
        if getattr(config, name) not in known:
            raise UserError(f"config.objective.{name}={getattr(config, name)!r} is not one of {', '.join(known)}")
    if not 0 <= flip_probability(config) < 0.5:
        raise UserError(f"config.objective.label_smoothing={config.label_smoothing} must give eps in [0, 0.5)")
    at_least_zero(config, "objective", "dpo_beta")
    if config.dpo_beta and (config.stage, config.label_space) != ("finetune", "candidates"):
        raise UserError("config.objective.dpo_beta is for stage=finetune and label_space=candidates")
    if config.stage == "pretrain":
        return config
    return dataclasses.replace(config, verdict_ids=tuple(renderer.verdict_ids))


def row_types(config: Config) -> tuple[str, ...]:
    """The row types of the stage, the one to prefer first: labels are not looked at in `pretrain`."""
    return ROW_TYPES[::-1] if config.stage == "pretrain" else ROW_TYPES[:1]


def needs_reference(config: Config) -> bool:
    """Whether `loss` wants the weights of a reference model."""
    return config.dpo_beta > 0


def flip_probability(config: Config) -> float:
    """eps of equation (1) under either convention: eps = alpha (K - 1) / K with K = 2 verdicts."""
    return config.label_smoothing / 2 if config.smoothing_convention == "uniform" else config.label_smoothing


def encode(row: dict[str, Any], renderer: Any, config: Config) -> Any:
    """Both answer orders of a pair, as two renderings of one example."""
    prompt = row["prompt"]
    if config.stage == "pretrain":
        first, second = row["responses"] if "responses" in row else (row["chosen"], row["rejected"])
        orders = ((first, second), (second, first))
        return tuple(example(renderer.pair_text(prompt, *order)) for order in orders)
    judged = (
        renderer.judge(prompt, row["chosen"], row["rejected"]),
        renderer.judge(prompt, row["rejected"], row["chosen"]),
    )
    return tuple(example((ids, [0.0] * len(ids)), verdict=verdict) for verdict, ids in enumerate(judged))


def loss(model: Any, weights: Any, batch: dict[str, jax.Array], config: Config, reference: Any = None) -> tuple:
    """Token mean (pretrain) or mean over pairs (finetune), with `accuracy` and `margin` of the verdicts."""
    hidden = model.forward(weights, batch).hidden
    if config.stage == "pretrain":
        total = heads.cross_entropy(weights, hidden, batch["labels"], batch["loss_mask"], model.logit_chunk, model.mesh)
        tokens = jnp.sum(batch["loss_mask"])
        return (total, tokens), {"nll": (total, tokens)}
    read_BND = heads.take_positions(hidden, batch["ends"])
    logits_BN2 = heads.verdict_logits(weights, read_BND, config.verdict_ids)
    sign = 1 - 2 * batch["verdict"].astype(jnp.float32)
    margins = sign * (logits_BN2[..., 0] - logits_BN2[..., 1])
    compared = margins
    if needs_reference(config):
        states_BND = heads.take_positions(model.forward(reference, batch).hidden, batch["ends"])
        others_BN2 = jax.lax.stop_gradient(heads.verdict_logits(reference, states_BND, config.verdict_ids))
        compared = config.dpo_beta * (margins - sign * (others_BN2[..., 0] - others_BN2[..., 1]))
    losses = verdict_loss(compared, flip_probability(config))
    if config.label_space == "full":
        losses -= jax.nn.logsumexp(logits_BN2, axis=-1) - jax.nn.logsumexp(heads.logits(weights, read_BND), axis=-1)
    mask = batch["example_mask"]
    count = jnp.sum(mask)
    return (jnp.sum(mask * losses), count), {
        "accuracy": (jnp.sum(mask * (margins > 0)), count),
        "margin": (jnp.sum(mask * margins), count),
    }


def verdict_loss(margin: jax.Array, eps: float) -> jax.Array:
    """Equation (2): -log sigmoid(d) + eps d, elementwise, float32."""
    return -jax.nn.log_sigmoid(margin) + eps * margin
