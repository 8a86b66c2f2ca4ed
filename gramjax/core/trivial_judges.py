"""Judges that look at nothing but length, or at nothing: what a judge's accuracy has to be compared with.

Each one gives a judged pair another verdict, as a scalar reward would: the rules of the benchmarks apply to them too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gramjax.core import leaderboards, rewardbench2, statistics

Record = Mapping[str, Any]


LONGER, SHORTER, RANDOM = "longer", "shorter", "random"
NAMES = (LONGER, SHORTER, RANDOM)
"""`longer` and `shorter` by characters, equal lengths are ties; `random`: a coin that belongs to the id of the pair."""


def judged(records: Sequence[Record], name: str) -> list[dict[str, Any]]:
    """The same pairs, judged by one of `NAMES`. Lengths are rewards; the coin is thrown for a pair."""
    own = ("id", "subset", "prompt_length", "chosen_length", "rejected_length", *leaderboards.COLUMNS)
    out = []
    for record in records:
        sign = -1 if name == SHORTER else 1
        chosen, rejected = sign * record["chosen_length"], sign * record["rejected_length"]
        if name == RANDOM:
            chosen, rejected = (1, 0) if statistics.coin(0, str(record["id"])) else (0, 1)
        verdict = (chosen > rejected) - (chosen < rejected)
        out.append(
            {key: record[key] for key in own if key in record}
            | {"order": RANDOM if name == RANDOM else "none", "score_chosen": chosen, "score_rejected": rejected}
            | {"p_first": None, "p_second": None, "probability": (verdict + 1) / 2}
            | {"correct": verdict > 0, "tie": verdict == 0}
        )
    return out


def summarise(records: Sequence[Record], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Accuracy, Wilson's interval and ties of every trivial judge, and its headlines by the rules of the benchmark."""
    benchmark = leaderboards.benchmark_of(records)
    out = {}
    for name in NAMES:
        pairs = judged(records, name)
        right = sum(pair["correct"] for pair in pairs)
        low, high = statistics.wilson(right, len(pairs))
        found = leaderboards.summarise(pairs, benchmark, seed)
        out[name] = {
            "accuracy": right / len(pairs),
            "low": low,
            "high": high,
            "num_pairs": len(pairs),
            "num_correct": right,
            "ties": sum(pair["tie"] for pair in pairs),
        } | {key: value for key, value in found if not isinstance(value, dict)}
    return out


def summarise_lists(records: Sequence[Record], seed: int = 0) -> dict[str, dict[str, Any]]:
    """The same judges on scored lists (`core.rewardbench2`, with the `lengths` of the answers)."""
    out = {}
    for name in NAMES:
        lists = [{**record, "scores": _scores(record, name)} for record in records]
        values = [rewardbench2.best_of(record["scores"]) for record in lists if not rewardbench2.is_ties(record)]
        low, high = statistics.wilson(sum(values), len(values))
        table = rewardbench2.rewardbench2(lists, seed)
        out[name] = {
            "accuracy": sum(values) / len(values) if values else None,
            "low": low,
            "high": high,
            "num_lists": len(values),
            "rewardbench2_overall": table["overall"],
            "rewardbench2_ties": table["subsets"].get(rewardbench2.TIES, {}).get("score"),
        }
    return out


def _scores(record: Record, name: str) -> list[float]:
    if name == RANDOM:
        generator = np.random.default_rng([ord(letter) for letter in str(record["id"])])
        return generator.random(len(record["lengths"])).tolist()
    return [(-1 if name == SHORTER else 1) * float(length) for length in record["lengths"]]
