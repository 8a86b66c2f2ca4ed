"""Trivial judges and a bag-of-words model on any preference file: what a reward model has to beat.

python benchmarks/baselines.py FILE... [--train FILE...] [--limit N] [--json OUT.json]

longest, shortest   the answer with more, or fewer, characters
random              a seeded coin
always_first        the answer shown first: wrong for every pair when both orders count, a coin in one order
tfidf               logistic regression on TF-IDF terms of an answer (and, for answers of a few words, each term of the
                    prompt crossed with the answer), trained on --train, else cross-validated over prompts

A tie counts as wrong. Intervals are Wilson's, 95 %. Needs scikit-learn for tfidf (`pip install "gramjax[dev]"`).
"""

import argparse
import json
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gramjax.core import statistics
from gramjax.core.config import DataSection
from gramjax.core.errors import GramjaxError
from gramjax.data import readers

Row = Mapping[str, Any]
SHORT = 3
"""Answers of at most so many words are crossed with the terms of their prompt."""


def text(value: Any) -> str:
    """A text, or the contents of messages one after the other."""
    return value if isinstance(value, str) else "\n".join(str(message.get("content") or "") for message in value)


def longest(row: Row) -> float:
    """Positive where the chosen answer has more characters."""
    return float(len(text(row["chosen"])) - len(text(row["rejected"])))


def shortest(row: Row) -> float:
    """Positive where the chosen answer has fewer characters."""
    return -longest(row)


def random(row: Row, seed: int = 0) -> float:
    """A coin that depends on the id of the row only."""
    return 1.0 if statistics.coin(seed, str(row["id"])) else -1.0


def always_first(row: Row) -> float:
    """Both orders: the first answer wins once each, which is a tie."""
    return 0.0


RULES: dict[str, Callable[[Row], float]] = {
    "longest": longest,
    "shortest": shortest,
    "random": random,
    "always_first": always_first,
}


def terms(prompt: str, answer: str) -> list[str]:
    """Words and word pairs of the answer; for a short answer also every term of the prompt crossed with it."""

    def grams(words: list[str]) -> list[str]:
        return words + [f"{a} {b}" for a, b in zip(words, words[1:])]

    words = re.findall(r"\w+", answer.lower())
    out = grams(words)
    if len(words) <= SHORT:
        key = "_".join(words)
        out += [f"{key}|{term}" for term in grams(re.findall(r"\w+", prompt.lower()))]
    return out


def fit_tfidf(train: Sequence[Row], strength: float = 10.0) -> Callable[[Sequence[Row]], np.ndarray]:
    """Train the bag-of-words judge; the result maps rows to margins. It knows no order: f(a, b) = -f(b, a)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    def documents(rows: Sequence[Row], side: str) -> list[tuple[str, str]]:
        return [(text(row["prompt"]), text(row[side])) for row in rows]

    vectoriser = TfidfVectorizer(analyzer=lambda pair: terms(*pair), sublinear_tf=True, min_df=2)
    vectoriser.fit(documents(train, "chosen") + documents(train, "rejected"))

    def features(rows: Sequence[Row]) -> Any:
        return vectoriser.transform(documents(rows, "chosen")) - vectoriser.transform(documents(rows, "rejected"))

    import scipy.sparse

    difference = features(train)
    classifier = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    labels = np.repeat([1, 0], len(train))
    classifier.fit(scipy.sparse.vstack([difference, -difference]), labels)
    return lambda rows: classifier.decision_function(features(rows))


def cross_validated(rows: Sequence[Row], folds: int) -> np.ndarray:
    """Margins of every row from a judge trained on the other folds; rows with one prompt stay in one fold."""
    fold = np.array([zlib.crc32(text(row["prompt"]).encode()) % folds for row in rows])
    margins = np.zeros(len(rows))
    for part in range(folds):
        inside, outside = np.flatnonzero(fold == part), np.flatnonzero(fold != part)
        if len(inside):
            margins[inside] = fit_tfidf([rows[i] for i in outside])([rows[i] for i in inside])
    return margins


def count(margins: Any) -> dict[str, Any]:
    """Accuracy of margins (positive is right, 0 a tie and wrong) with Wilson's interval."""
    margins = np.asarray(margins, np.float64)
    right = int(np.sum(margins > 0))
    low, high = statistics.wilson(right, len(margins))
    return {
        "accuracy": right / max(len(margins), 1),
        "low": low,
        "high": high,
        "num_correct": right,
        "ties": int(np.sum(margins == 0)),
        "num_pairs": len(margins),
    }


def measure(rows: Sequence[Row], train: Sequence[Row] = (), folds: int = 5, tfidf: bool = True) -> dict[str, Any]:
    """All baselines on preference rows."""
    out = {name: count([rule(row) for row in rows]) for name, rule in RULES.items()}
    shown_first = np.array([random(row) for row in rows])
    out["always_first"]["accuracy_one_order"] = float(np.mean(shown_first > 0))
    if tfidf:
        margins = fit_tfidf(train)(rows) if train else cross_validated(rows, folds)
        out["tfidf"] = count(margins) | {"trained_on": len(train) or f"{folds}-fold cross-validation"}
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the files, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+")
    parser.add_argument("--train", nargs="+", default=[], help="preference files that tfidf is trained on")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--no-tfidf", action="store_true")
    parser.add_argument("--json", default="", help="write the numbers here")
    arguments = parser.parse_args(argv)
    section = DataSection(limit=arguments.limit, on_bad_row="skip")
    try:
        train = [row for source in arguments.train for row in readers.read(source, DataSection(), "preference").rows]
        results: dict[str, Any] = {}
        for source in arguments.files:
            found = readers.read(source, section, "preference")
            results[source] = {
                "num_pairs": len(found.rows),
                "dropped": {reason: number for reason, (number, _) in found.dropped.items()},
                "baselines": measure(found.rows, train, arguments.folds, not arguments.no_tfidf),
            }
    except GramjaxError as error:
        print(f"baselines: {error}", file=sys.stderr)
        return error.exit_code
    for source, result in results.items():
        print(f"\n{source}: {result['num_pairs']} pairs, dropped {result['dropped'] or 'none'}")
        for name, numbers in result["baselines"].items():
            interval = f"[{numbers['low']:.3f}, {numbers['high']:.3f}]"
            print(f"  {name:<14}{numbers['accuracy']:.3f}  {interval}  ties {numbers['ties']}")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
