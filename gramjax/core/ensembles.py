"""Several reward models as one: what an ensemble says of pairs that each of its members has judged.

Members disagree where they know little, so their mean is better than one of them, and a reward that a policy is tuned
against can be made pessimistic there (Coste et al., arXiv 2310.02743). NumPy only; records as in `core.judgements`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import judgements, statistics
from gramjax.core.errors import DataError, UserError

COMBINATIONS = ("mean", "worst", "uncertainty", "deviation")
KEPT = ("id", "subset", "prompt_length", "chosen_length", "rejected_length", "num_tokens", "shortened", "order")

Record = Mapping[str, Any]


def rewards(members_MN: Any, combination: str = "mean", penalty: float = 0.5) -> np.ndarray:
    """One reward per answer, float64 [N], from those of each member [M, N].

    A scalar reward has no zero of its own: each member is centred on its mean over the answers first. `mean`; `worst`
    (the smallest over the members); `uncertainty` (mean minus `penalty` times the variance over the members);
    `deviation` (the same with the standard deviation).
    """
    members_MN = np.asarray(members_MN, np.float64)
    centred_MN = members_MN - members_MN.mean(axis=1, keepdims=True)
    if combination == "mean":
        return centred_MN.mean(axis=0)
    if combination == "worst":
        return centred_MN.min(axis=0)
    if combination == "uncertainty":
        return centred_MN.mean(axis=0) - penalty * centred_MN.var(axis=0)
    if combination == "deviation":
        return centred_MN.mean(axis=0) - penalty * centred_MN.std(axis=0)
    raise UserError(f"config.ensemble.combination is {combination!r}; choose one of {', '.join(COMBINATIONS)}")


def combine(
    members: Sequence[Sequence[Record]], combination: str = "mean", penalty: float = 0.5, agg: str = "prob"
) -> tuple[list[dict[str, Any]], int]:
    """Judged pairs of the ensemble, and how many pairs were left out because some member has no number for them.

    Scalar members are combined by `rewards`; generative judges by the mean of their margins in each order (`agg` as in
    `statistics.margin_score`), for which `combination` must be `mean`. Raises DataError when no pair is left or when
    scalar and generative members are mixed.
    """
    by_id = [{record["id"]: record for record in member if record["margin"] is not None} for member in members]
    everyone = [record["id"] for record in members[0] if all(record["id"] in found for found in by_id)]
    missing = len({record["id"] for member in members for record in member}) - len(everyone)
    if not everyone:
        raise DataError("the members of the ensemble have no judged pair in common")
    first = by_id[0]
    rows = [[found[i] for i in everyone] for found in by_id]
    kinds = {record["order"] for member in rows for record in member}
    if "none" in kinds and len(kinds) > 1:
        raise DataError("the ensemble mixes scalar models and generative judges: their numbers cannot be averaged")
    out = [{name: first[i][name] for name in KEPT} for i in everyone]
    column = lambda name: np.array([[float(r[name]) for r in member] for member in rows])  # noqa: E731
    if "none" in kinds:
        both = rewards(np.concatenate([column("score_chosen"), column("score_rejected")], axis=1), combination, penalty)
        _fill(out, both[: len(out)], both[len(out) :])
    elif combination != "mean":
        raise UserError(f"config.ensemble.combination={combination!r} needs scalar rewards; judges have only 'mean'")
    elif kinds == {"both"}:
        scores = statistics.margin_score(column("margin_first").mean(0), column("margin_second").mean(0), agg)
        for i, record in enumerate(out):
            record |= {
                "score_chosen": scores.score[i],
                "score_rejected": 1 - scores.score[i],
                "margin": scores.margin[i],
                "margin_first": scores.margin_first[i],
                "margin_second": scores.margin_second[i],
                "p_first": scores.p_first[i],
                "p_second": scores.p_second[i],
                "probability": scores.score[i],
                "log_probability": scores.log_score[i],
                "consistent": bool(scores.consistent[i]),
            }
    else:
        raise UserError("an ensemble of judges needs both orders: config.evals.preference.both_orders=True")
    return [judgements.decide(record) for record in out], missing


def _fill(records: list[dict[str, Any]], chosen: np.ndarray, rejected: np.ndarray) -> None:
    for record, better, worse in zip(records, chosen, rejected):
        margin = better - worse
        record |= dict.fromkeys(("margin_first", "margin_second", "p_first", "p_second", "consistent"))
        record |= {
            "score_chosen": better,
            "score_rejected": worse,
            "margin": margin,
            "probability": statistics.sigmoid(margin),
            "log_probability": statistics.log_sigmoid(margin),
        }
