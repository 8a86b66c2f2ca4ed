"""Best of n in a generated world, with every selector: the table and picture of docs/ranking.md.

python benchmarks/best_of_n.py --model RUN --out DIR [--lists 200] [--count 16] [--json FILE]

RUN is a judge of the quickstart's world (`gramjax train --config=quickstart --workdir=RUN`). The policy answers each of
the four words with its partner with probability 0.3, else with another word; the true score is the share of right
words; the reference is such an answer, too. A minute on two cores.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gramjax import cli
from gramjax.core import folder
from gramjax.data.recipes import word_translation as world

SELECTORS = ("linear", "knockout", "round_robin")
KEPT = ("num_comparisons", "num_sequences", "num_proxy_sequences", "proxy", "oracle", "oracle_share",
        "swap_consistency", "points")  # fmt: skip
RIGHT = 0.3


def answer(asked: Sequence[str], draw: random.Random) -> tuple[str, float]:
    """An answer of the policy, and the share of its words that are right."""
    partners = [world.DICTIONARY[word] for word in asked]
    others = [partner for word, partner in world.DICTIONARY.items() if word not in asked]
    words = [partner if draw.random() < RIGHT else draw.choice(others) for partner in partners]
    right = sum(word == partner for word, partner in zip(words, partners, strict=True))
    return " ".join(["Translation:", *words]), right / len(words)


def rows(lists: int, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Lists for the prompts of held-out pairs."""
    draw, out = random.Random(seed), []
    for row in world.rows("valid", lists + lists % 2)[:lists]:
        asked = row["prompt"].split()[1:]
        drawn = [answer(asked, draw) for _ in range(count)]
        responses, oracle = zip(*drawn, strict=True)
        out.append({"id": row["id"], "prompt": row["prompt"], "responses": responses, "oracle": oracle,
                    "reference": answer(asked, draw)[0]})  # fmt: skip
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Write the lists, rank them with each selector, keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--lists", type=int, default=200)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--json", type=Path, help="where the numbers go (default: DIR/best_of_n.json)")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / "lists.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(given.lists, given.count)), "utf-8")
    results: dict[str, Any] = {"lists": given.lists, "count": given.count, "right": RIGHT}
    for selector in SELECTORS:
        where, began = given.out / selector, time.perf_counter()
        flags = {"model.path": given.model, "data.path": path, "evals.best_of_n.selector": selector}
        argv = [f"--config.{name}={value}" for name, value in flags.items()]
        if code := cli.main(["evaluate", "--config=best_of_n", f"--workdir={where}", *argv]):
            return code
        found = json.loads((where / "eval" / "best_of_n.json").read_text("utf-8"))
        results[selector] = {"seconds": time.perf_counter() - began, **{key: found[key] for key in KEPT}}
    folder.write_json(given.json or given.out / "best_of_n.json", results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
