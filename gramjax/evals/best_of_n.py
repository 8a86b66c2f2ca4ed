"""Best of n: put the responses to a prompt in order by a reward model, and see what choosing by it is worth.

A model with a reward per answer takes the largest; a judge compares pairs in both orders (`core.ranking`: linear scan,
knockout, everybody against everybody). The n responses of a prompt are seen in nested subsets, 1, 2, 4, ..., drawn by
seed and id: at each size the proxy (what the model itself says of its choice) and the oracle (a column with a true
score per response) stand against the divergence log n - (n - 1) / n. A proxy that rises while the oracle falls is
over-optimised (Gao et al. 2023). For a judge, which scores no answer alone, the proxy is its preference over one fixed
reference response.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gramjax.core import ranking, statistics
from gramjax.core.errors import DataError, UserError
from gramjax.data.rows import Tally, digest, text_field
from gramjax.scoring import reward_model
from gramjax.scoring.reading import Layout, Reader
from gramjax.scoring.reward_model import RewardModel, settings_of

ROW_TYPES = ("responses",)
REFERENCE = True
SELECTORS = ("auto", "argmax", *ranking.METHODS)
LISTS_AT_ONCE = 64
"""Lists that are ranked together: their comparisons share batches."""
TOO_FEW = "fewer responses than the largest size"


@dataclasses.dataclass(frozen=True)
class Config:
    """How lists are ranked and what is drawn of it."""

    selector: str = "auto"
    """`argmax` (models with a reward per answer), `linear` (n - 1 comparisons, one after the other), `knockout` (as
    many, in rounds), `round_robin` (all pairs), or `auto`: `argmax` where there are rewards, else `round_robin` up to
    16 responses and `knockout` above."""
    sizes: tuple[int, ...] = ()
    """Sizes of the nested subsets, increasing; empty: the powers of two up to the shortest list, and that."""
    top: int = 1
    """How many of the whole list are put in order (1: the best only); 0: all. `argmax` puts all in order."""
    oracle: str = ""
    """Column with a true score per response; empty: `oracle`, else `scores`, else none."""
    reference: str = "reference"
    """Column with the fixed response that a judge's choices are compared with (a greedy one of the policy); rows
    without it: their first response."""
    both_orders: bool = True
    """Ask a judge about every pair in both orders; False: in one, drawn by seed, row and pair."""
    method: str = "auto"
    """`judge`, `score`, `implicit` or `auto`, as in config.evals.preference."""
    agg: str = "prob"
    """Average of the two orders: `prob` (of probabilities) or `logit` (of margins)."""
    label_space: str = "candidates"
    """Softmax over the two verdict tokens (`candidates`) or the vocabulary (`full`)."""
    beta: float = 0.1
    """Scale of implicit rewards."""
    overlong: str = "shorten_responses"
    """What happens to texts longer than config.data.max_length (see config.data.overlong; empty: the same as there)."""
    batch_size: int = 32
    """Sequences per batch over all devices."""
    share: bool = True
    """Compute what texts have in common at the start once; scores change by rounding only."""
    buckets: tuple[int, ...] = ()
    """Lengths that sequences are padded to; empty: chosen by the data."""
    limit: int = 0
    """Rank only the first lists; 0: all."""
    bootstrap_samples: int = 1000
    seed: int = 0


def check(model: Any, config: Config) -> str:
    """The selector. Raises UserError for settings that contradict each other or the model."""
    kind = reward_model.check(model, settings_of(config))
    if config.selector not in SELECTORS:
        raise UserError(f"config.evals.best_of_n.selector={config.selector!r} is not one of {', '.join(SELECTORS)}")
    if config.selector == "argmax" and kind == "judge":
        raise UserError("config.evals.best_of_n.selector=argmax needs a reward per answer; a judge compares pairs")
    if list(config.sizes) != sorted(set(config.sizes)) or min(config.sizes, default=1) < 1:
        raise UserError(f"config.evals.best_of_n.sizes={config.sizes} must increase from 1 or more")
    if config.top < 0 or config.limit < 0:
        raise UserError("config.evals.best_of_n: top and limit must not be negative")
    return "argmax" if config.selector == "auto" and kind != "judge" else config.selector


def make_scorer(model: Any, renderer: Any, config: Config, mesh: Mesh | None = None) -> Reader:
    """The compiled function from weights and a padded batch to rewards or verdict logits (`scoring.reading`)."""
    model = model if mesh is None else dataclasses.replace(model, mesh=mesh)
    return reward_model.make_reader(model, renderer, settings_of(config))


def evaluate(
    model: Any,
    weights: Any,
    renderer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: Config,
    write_row: Callable[[dict[str, Any]], None] | None = None,
    mesh: Mesh | None = None,
    scorer: Reader | None = None,
    reference: Any = None,
) -> Iterator[tuple[str, Any]]:
    """Rank lists of responses; yield (name, value), plain numbers first, then the curve (`points`).

    `write_row` receives one dict per list: `ranking` (indices of its responses, best first), `wins`, `num_comparisons`,
    and what was chosen at each size. A list with a text that cannot be judged is left out and counted. Raises DataError
    when no list can be ranked or an oracle column does not fit, UserError for contradictory settings.
    """
    selector = check(model, config)
    scorer = scorer or make_scorer(model, renderer, config, mesh)
    layout = Layout(config.batch_size, config.buckets, config.share)
    judge = reward_model.build(model, weights, renderer, settings_of(config), layout, scorer, reference)
    skipped, records = Tally(), []
    lists = [_List(row, index, config) for index, row in enumerate(list(rows)[: config.limit or None])]
    sizes = config.sizes or nested_sizes(min((len(item.responses) for item in lists), default=0))
    for chunk in (lists[start : start + LISTS_AT_ONCE] for start in range(0, len(lists), LISTS_AT_ONCE)):
        for item in chunk:
            item.reason = TOO_FEW if len(item.responses) < max(sizes) else ""
        _rank([item for item in chunk if not item.reason], judge, selector, sizes, config)
        for item in chunk:
            if item.reason:
                skipped.add(item.reason, item.name)
                continue
            records.append(item.record(selector, sizes))
            if write_row is not None:
                write_row(records[-1])
    if not records:
        reasons = "; ".join(f"{count} {reason} (first: {first})" for reason, (count, first) in skipped.items())
        raise DataError(f"0 of {len(lists)} lists can be ranked: {reasons or 'there are no rows'}")
    yield from summarise(records, config.bootstrap_samples, config.seed)
    yield "selector", selector if selector != "auto" else records[0]["selector"]
    yield "kind", judge.kind
    yield "num_skipped", skipped.total
    yield "skipped", {reason: {"count": count, "first": first} for reason, (count, first) in skipped.items()}


def nested_sizes(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `most`, and `most` itself."""
    return tuple(sorted({*(1 << power for power in range(max(most, 1).bit_length())), max(most, 1)}))


class _List:
    """A row on its way to a ranking. Responses are named by their place in the row."""

    def __init__(self, row: Mapping[str, Any], index: int, config: Config) -> None:
        self.row, self.name, self.responses = row, str(row.get("id", index)), list(row["responses"])
        self.oracle = _oracle(row, self.name, config.oracle, len(self.responses))
        self.reference, self.has_reference = _reference(row, self.name, config.reference)
        self.drawn = sorted(range(len(self.responses)), key=lambda i: digest(config.seed, "best_of_n", self.name, i))
        """The responses in the order of which each subset is the beginning."""
        self.known: dict[tuple[int, int], float] = {}
        """Win probability of i over j, for i < j."""
        self.consistent: list[bool] = []
        self.rewards: list[float] = []
        self.proxies: dict[int, float] = {}
        self.found: list[ranking.Ranking] = []
        """The ranking at each size, and last that of the whole list."""
        self.reason, self.sequences, self.proxy_sequences, self.shortened = "", 0, 0, False

    def record(self, selector: str, sizes: Sequence[int]) -> dict[str, Any]:
        """The row of results."""
        whole, chosen = self.found[-1], [self.drawn[found.order[0]] for found in self.found[:-1]]
        wins = dict(zip(self.drawn, whole.wins, strict=True))
        selections = []
        for size, item, found in zip(sizes, chosen, self.found, strict=False):
            selection = {"n": size, "selected": item, "proxy": self.proxies[item], "num_comparisons": found.comparisons}
            if self.oracle:
                seen = [self.oracle[i] for i in self.drawn[:size]]
                selection |= {"oracle": self.oracle[item], "oracle_mean": float(np.mean(seen)),
                              "oracle_best": max(seen)}  # fmt: skip
            selections.append(selection)
        return {
            "id": self.name,
            "num_responses": len(self.responses),
            "selector": "argmax" if selector == "argmax" else whole.method,
            "ranking": [self.drawn[place] for place in whole.order],
            "wins": None if selector == "argmax" else [wins[i] for i in range(len(self.responses))],
            "rewards": self.rewards or None,
            "num_comparisons": len(self.known),
            "num_sequences": self.sequences,
            "num_proxy_sequences": self.proxy_sequences,
            "num_judged": len(self.consistent),
            "num_consistent": sum(self.consistent),
            "reference_given": self.has_reference,
            "shortened": self.shortened,
            "selections": selections,
        }


def _oracle(row: Mapping[str, Any], name: str, column: str, count: int) -> list[float]:
    """The true scores of the responses, empty where there are none. Raises DataError for a column that does not fit."""
    column = column or next((known for known in ("oracle", "scores") if row.get(known) is not None), "")
    if not column:
        return []
    values = row.get(column)
    fits = isinstance(values, list | tuple) and len(values) == count
    if not fits or not all(isinstance(v, int | float) and np.isfinite(v) for v in values or ()):
        raise DataError(f"row {name!r}: {column!r} is {values!r:.60}; {count} finite numbers were expected, one each")
    return [float(value) for value in values or ()]


def _reference(row: Mapping[str, Any], name: str, column: str) -> tuple[Any, bool]:
    """The response that a judge's choices are compared with, and whether a column gave it."""
    if row.get(column) is None:
        return row["responses"][0], False
    text = text_field(row, column, f"row {name!r}")
    if isinstance(text, str) != isinstance(row["responses"][0], str):
        if not isinstance(text, str):
            raise DataError(f"row {name!r}: {column!r} is a list of messages, its responses are strings")
        text = [{"role": "assistant", "content": text}]
    return text, True


def _rank(lists: Sequence[_List], judge: RewardModel, selector: str, sizes: Sequence[int], config: Config) -> None:
    """Rank every list at every size and as a whole. A list that cannot be judged gets a reason."""
    if judge.kind != "judge":
        items = [(item.row["prompt"], response) for item in lists for response in item.responses]
        found = iter(judge.rewards(items))
        for item in lists:
            own = list(itertools.islice(found, len(item.responses)))
            item.reason = next((reward.reason for reward in own if reward.reason), "")
            item.rewards = [reward.value for reward in own]
            item.sequences, item.shortened = len(own), any(reward.shortened for reward in own)
            if not item.reason and not np.all(np.isfinite(item.rewards)):
                item.reason = "a reward is no finite number"
        lists = [item for item in lists if not item.reason]
    asked = [(item, size, 1) for item in lists for size in sizes]
    asked += [(item, len(item.responses), config.top) for item in lists]
    if selector == "argmax":
        for item, size, _ in asked:
            item.found.append(_argmax(item, size))
    else:
        asking = [ranking.asking(size, selector, top=top, shuffled=False) for _, size, top in asked]

        def compare(pairs: list[tuple[int, ranking.Pair]]) -> list[float]:
            return _compare([(asked[number][0], pair) for number, pair in pairs], judge, config)

        for (item, _, _), found_one in zip(asked, ranking.together(asking, compare), strict=True):
            item.found.append(found_one)
    _add_proxies([item for item in lists if not item.reason], judge, config)


def _argmax(item: _List, size: int) -> ranking.Ranking:
    """The order of the rewards; equals stay in the order of drawing."""
    order = sorted(range(size), key=lambda place: -item.rewards[item.drawn[place]])
    return ranking.Ranking(tuple(order), (None,) * size, 0, "argmax")


def _compare(pairs: Sequence[tuple[_List, ranking.Pair]], judge: RewardModel, config: Config) -> list[float]:
    """Win probabilities of the first of each pair of places. What a list was asked before is not asked again."""
    wanted: dict[tuple[int, int, int], tuple[_List, int, int]] = {}
    named = [(item, item.drawn[a], item.drawn[b]) for item, (a, b) in pairs]
    for item, i, j in named:
        low, high = min(i, j), max(i, j)
        if not item.reason and (low, high) not in item.known:
            wanted[id(item), low, high] = (item, low, high)
    open_pairs = []
    for item, i, j in wanted.values():
        if item.responses[i] == item.responses[j]:
            item.known[i, j] = 0.5
        elif judge.kind != "judge":
            item.known[i, j] = float(statistics.sigmoid(item.rewards[i] - item.rewards[j]))
        else:
            open_pairs.append((item, i, j))
    _ask([(item, item.responses[i], item.responses[j], (i, j)) for item, i, j in open_pairs], judge, config)
    out = []
    for item, i, j in named:
        win = item.known.get((min(i, j), max(i, j)), 0.5)
        out.append(win if i < j else 1 - win)
    return out


def _ask(pairs: Sequence[tuple[_List, Any, Any, tuple[int, int]]], judge: RewardModel, config: Config) -> None:
    """Let a judge compare pairs; each list keeps what it said."""
    items = [(item.row["prompt"], first, second) for item, first, second, _ in pairs]
    orders = [_order(item, f"{i}-{j}", config) for item, _, _, (i, j) in pairs]
    for (item, _, _, pair), said in zip(pairs, judge.compare(items, orders), strict=True):
        item.sequences += 2 if config.both_orders else 1
        item.shortened |= said.shortened
        if said.reason or not np.isfinite(said.score):
            item.reason = item.reason or said.reason or "a verdict is no finite number"
            continue
        item.known[pair] = said.score
        if config.both_orders:
            item.consistent.append((said.margin_first > 0) == (said.margin_second < 0))


def _order(item: _List, pair: str, config: Config) -> str:
    if config.both_orders:
        return "both"
    return "first" if statistics.coin(config.seed, f"{item.name}/{pair}") else "second"


def _add_proxies(lists: Iterable[_List], judge: RewardModel, config: Config) -> None:
    """What the model itself says of every response that some size chose."""
    open_pairs = []
    for item in lists:
        for found in item.found:
            i = item.drawn[found.order[0]]
            if judge.kind != "judge":
                item.proxies[i] = item.rewards[i]
            elif item.responses[i] == item.reference:
                item.proxies[i] = 0.5
            elif not item.has_reference and (0, i) in item.known:
                item.proxies[i] = 1 - item.known[0, i]
            elif i not in item.proxies:
                item.proxies[i] = np.nan
                open_pairs.append((item, i))
    said = judge.compare(
        [(item.row["prompt"], item.responses[i], item.reference) for item, i in open_pairs],
        [_order(item, f"{i}-reference", config) for item, i in open_pairs],
    ) if open_pairs else []  # fmt: skip
    for (item, i), found_one in zip(open_pairs, said, strict=True):
        item.proxies[i] = found_one.score
        item.proxy_sequences += 2 if config.both_orders else 1
        if found_one.reason or not np.isfinite(found_one.score):
            item.reason = found_one.reason or "a verdict is no finite number"


# -- what came out -----------------------------------------------------------------------------------------------------


def summarise(records: Sequence[Mapping[str, Any]], samples: int = 1000, seed: int = 0) -> Iterator[tuple[str, Any]]:
    """The metrics of ranked lists: what choosing among the most responses gains, what it costs, and the curve."""
    points = [
        _point([record["selections"][place] for record in records], samples, seed)
        for place in range(len(records[0]["selections"]))
    ]
    last, best = points[-1], max(points, key=lambda point: point.get("oracle", 0.0))
    yield "num_lists", len(records)
    yield "num_responses", sum(record["num_responses"] for record in records)
    yield "n", last["n"]
    yield "kl", last["kl"]
    yield "proxy", last["proxy"]
    yield "proxy_gain", last["proxy"] - points[0]["proxy"]
    if "oracle" in last:
        yield "oracle", last["oracle"]
        yield "oracle_gain", last["oracle"] - points[0]["oracle"]
        yield "oracle_share", last["oracle_share"]
        yield "oracle_peak_n", best["n"]
        yield "oracle_peak_kl", best["kl"]
        yield "oracle_lost", best["oracle"] - last["oracle"]
    for name in ("num_comparisons", "num_sequences", "num_proxy_sequences"):
        yield name, sum(record[name] for record in records)
    yield "sequences_per_list", sum(record["num_sequences"] for record in records) / len(records)
    if judged := sum(record["num_judged"] for record in records):
        yield "swap_consistency", sum(record["num_consistent"] for record in records) / judged
    yield "num_without_reference", sum(not record["reference_given"] for record in records)
    yield "num_shortened", sum(record["shortened"] for record in records)
    yield "points", points
    share = "oracle_share: how much of the way from a random to the best response the choices went"
    subsets = "the subsets of a list are nested; every size is counted over the same lists"
    yield "notes", {"oracle_share": share, "subsets": subsets}


def _point(selections: Sequence[Mapping[str, Any]], samples: int, seed: int) -> dict[str, Any]:
    """One size over all lists."""
    size = selections[0]["n"]
    out: dict[str, Any] = {"n": size, "kl": ranking.kl(size), "num_lists": len(selections)}
    for name in ("proxy", "oracle"):
        if all(name in selection for selection in selections):
            values = np.array([selection[name] for selection in selections], np.float64)
            ends = statistics.bootstrap(values, samples, seed)
            low, high = (float(end) if np.isfinite(end) else None for end in ends)
            out |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    if "oracle" in out:
        mean, best = (float(np.mean([s[name] for s in selections])) for name in ("oracle_mean", "oracle_best"))
        share = (out["oracle"] - mean) / (best - mean) if best > mean else None
        out |= {"oracle_mean": mean, "oracle_best": best, "oracle_share": share}
    return out | {"num_comparisons": float(np.mean([selection["num_comparisons"] for selection in selections]))}
