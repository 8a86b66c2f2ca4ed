"""Best of n: the choices and costs of every selector, what is compared with what, and errors that say what is wrong."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from gramjax.core import plugins, spec
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.core.statistics import sigmoid
from gramjax.data import text, tokenizer
from gramjax.evals import best_of_n
from gramjax.models import model as models
from gramjax.plots import report
from gramjax.scoring import reward_model
from gramjax.scoring.reward_model import Comparison, Reward
from gramjax.training import evaluation


class Judge:
    """A judge (or scalar model) that reads the score off the answer "3.5" and leans to the first by 1; counts."""

    def __init__(self, kind="judge"):
        self.kind, self.batches, self.pairs, self.answers = kind, 0, [], []

    def compare(self, items, orders):
        self.batches, self.pairs = self.batches + 1, self.pairs + [(*item, order) for item, order in zip(items, orders)]
        return [self.one(float(first), float(second)) for _, first, second in items]

    def one(self, first, second):
        if min(first, second) < -90:
            return Comparison(float("nan"), reason="too bad")
        gap = first - second
        return Comparison((sigmoid(gap + 1) + sigmoid(gap - 1)) / 2, margin_first=gap + 1, margin_second=1 - gap)

    def rewards(self, items):
        self.answers += items
        return [Reward(float(answer)) for _, answer in items]


def lists(count=5, n=8, seed=0):
    """Rows whose responses are their own scores, all different; the oracle is their square."""
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(n) - n / 2.0, (count, 1)), axis=1)
    return [{"id": str(i), "prompt": f"q{i}", "responses": [str(s) for s in row], "oracle": [float(s * s) for s in row]}
            for i, row in enumerate(scores)]  # fmt: skip


@pytest.fixture
def run(monkeypatch):
    """Evaluate with a judge that needs no network: metrics, rows, the judge."""

    def evaluate(rows, kind="judge", **settings):
        judge, written = Judge(kind), []
        monkeypatch.setattr(reward_model, "check", lambda model, settings: kind)
        monkeypatch.setattr(reward_model, "build", lambda *arguments: judge)
        config = best_of_n.Config(bootstrap_samples=20, **settings)
        found = dict(best_of_n.evaluate(None, None, None, rows, config, written.append, scorer="kept"))
        json.dumps([found, written], allow_nan=False)
        return found, written, judge

    return evaluate


COSTS = {"linear": 7, "knockout": 7, "round_robin": 28, "argmax": 0}


@pytest.mark.parametrize("selector", COSTS)
def test_every_selector_takes_the_best_of_each_nested_subset(run, selector):
    """V12 through the evaluation, and what it costs: of 1, 2, 4, 8 responses the smaller sets cost nothing extra."""
    rows = lists()
    found, written, judge = run(rows, "score" if selector == "argmax" else "judge", selector=selector)
    for row, record in zip(rows, written, strict=True):
        score = [float(response) for response in row["responses"]]
        assert record["ranking"][0] == np.argmax(score)
        chosen = [s["selected"] for s in record["selections"]]
        values = [score[item] for item in chosen]
        assert [s["n"] for s in record["selections"]] == [1, 2, 4, 8] and values == sorted(values)
        assert [s["oracle"] for s in record["selections"]] == [value**2 for value in values]
        assert record["selections"][-1]["oracle_best"] == max(row["oracle"])
        assert record["num_comparisons"] == COSTS[selector]
        assert record["num_sequences"] == (8 if selector == "argmax" else 2 * COSTS[selector])
    assert found["num_comparisons"] == 5 * COSTS[selector] and found["kind"] == judge.kind
    assert found["selector"] == selector and found["sequences_per_list"] == max(8 * (selector == "argmax"),
                                                                                2 * COSTS[selector])  # fmt: skip
    assert len({(prompt, *sorted((a, b))) for prompt, a, b, _ in judge.pairs}) == len(judge.pairs), "nothing twice"
    cost = {"linear": [0, 1, 3, 7], "knockout": [0, 1, 3, 7], "round_robin": [0, 1, 6, 28], "argmax": [0] * 4}
    assert [point["num_comparisons"] for point in found["points"]] == cost[selector]


def test_lists_share_batches(run):
    """Five lists of 8 in one call for a tournament, in three for a knockout, in seven for a scan; the proxies
    (preferences over the first response) take one more where they are not known already."""
    assert [run(lists(), selector=s)[2].batches for s in ("round_robin", "knockout", "linear")] == [1, 4, 8]


def test_auto_follows_model_and_length(run):
    assert run(lists(2, 16))[0]["selector"] == "round_robin" and run(lists(2, 17))[0]["selector"] == "knockout"
    assert run(lists(2, 17), "score")[0]["selector"] == run(lists(2, 17), "implicit")[0]["selector"] == "argmax"


def test_whole_rankings_and_wins(run):
    rows = lists(3, 6)
    for kind, selector in (("judge", "round_robin"), ("judge", "linear"), ("score", "argmax"), ("score", "knockout")):
        for row, record in zip(rows, run(rows, kind, selector=selector, top=0)[1], strict=True):
            score = np.array(row["responses"], float)
            assert record["ranking"] == list(np.argsort(-score))
            assert (record["rewards"] or list(score)) == list(score)
            if selector == "round_robin":
                assert list(np.argsort(-np.array(record["wins"]))) == record["ranking"]


def test_subsets_are_drawn_by_seed_and_id_and_not_by_place(run):
    rows = lists(40)
    first = lambda seed, given: {r["id"]: r["selections"][0]["selected"] for r in run(given, seed=seed)[1]}  # noqa: E731
    assert first(0, rows) == first(0, rows[::-1]) != first(1, rows)
    assert len(set(first(0, rows).values())) == 8


def test_the_proxy_of_a_judge_is_its_preference_over_the_reference(run):
    """A column, else the first response; a choice that is the reference itself is a tie, and nobody is asked."""
    rows = [row | {"reference": "0.25"} for row in lists(4)]
    found, written, judge = run(rows, selector="linear")
    assert found["num_without_reference"] == 0 and found["num_proxy_sequences"] == 2 * len(
        {(r["id"], s["selected"]) for r in written for s in r["selections"]}
    )
    for row, record in zip(rows, written, strict=True):
        for selection in record["selections"]:
            gap = float(row["responses"][selection["selected"]]) - 0.25
            assert selection["proxy"] == pytest.approx((sigmoid(gap + 1) + sigmoid(gap - 1)) / 2)
    found, written, _ = run(lists(40))
    assert found["num_without_reference"] == 40
    own = [s["proxy"] for r in written for s in r["selections"] if s["selected"] == 0]
    assert own and set(own) == {0.5}
    scalar, written, judge = run(rows, "score")
    assert scalar["num_proxy_sequences"] == 0 and not judge.pairs and scalar["proxy"] == 3.0


def test_equal_responses_are_a_tie_and_cost_nothing(run):
    row = {"id": "a", "prompt": "q", "responses": ["1", "1", "2", "1"]}
    found, (record,), judge = run([row], selector="round_robin")
    assert record["ranking"] == [2] and record["num_comparisons"] == 6 and record["num_sequences"] == 6
    assert "oracle" not in found and "oracle" not in record["selections"][0]


def test_one_order_costs_half_and_belongs_to_the_pair(run):
    found, _, judge = run(lists(), selector="round_robin", both_orders=False)
    assert found["num_sequences"] == 5 * 28 and "swap_consistency" not in found
    orders = [order for *_, order in judge.pairs]
    assert {"first", "second"} == set(orders) and 40 < orders.count("first") < 120
    both = run(lists(), selector="round_robin")[0]
    assert both["num_sequences"] == 5 * 56 and 0 < both["swap_consistency"] < 1


def test_lists_that_are_left_out_are_counted(run):
    rows = lists(3) + [{"id": "short", "prompt": "q", "responses": ["1", "2"]}]
    rows += [{"id": "bad", "prompt": "q", "responses": ["-99", *map(str, range(7))]}]
    found, written, _ = run([row | {"oracle": None} for row in rows], sizes=(1, 8), selector="knockout")
    assert found["num_lists"] == 3 == len(written) and found["num_skipped"] == 2
    assert found["skipped"] == {best_of_n.TOO_FEW: {"count": 1, "first": "short"},
                                "too bad": {"count": 1, "first": "bad"}}  # fmt: skip
    assert [p["n"] for p in run(rows[:4])[0]["points"]] == [1, 2], "without sizes the shortest list decides"
    assert run(rows, limit=2)[0]["num_lists"] == 2
    with pytest.raises(DataError, match=r"0 of 1 lists can be ranked: 1 too bad \(first: bad\)"):
        run(rows[-1:])


def test_the_scores_column_is_an_oracle_and_must_fit(run):
    rows = [{**row, "scores": row.pop("oracle")} for row in lists(2)]
    assert run(rows)[0]["oracle"] == 9.0  # of 3, the largest score; the largest oracle, 16, belongs to -4
    for wrong in ([1.0], [float("nan")] * 8, "high"):
        with pytest.raises(DataError, match="'truth' is .*8 finite numbers"):
            run([rows[0] | {"truth": wrong}], oracle="truth")


@pytest.mark.parametrize(
    "settings,words",
    [
        ({"selector": "argmax"}, "argmax needs a reward per answer"),
        ({"selector": "best"}, "selector='best' is not one of auto, argmax, linear"),
        ({"sizes": (4, 2)}, "must increase"),
        ({"sizes": (0, 2)}, "must increase from 1"),
        ({"top": -1}, "top and limit"),
    ],
)
def test_settings_that_do_not_fit_are_refused(run, settings, words):
    with pytest.raises(UserError, match=words):
        run(lists(1), **settings)


def test_with_real_networks_the_numbers_are_those_of_the_reward_model():
    """Bytes as tokens: in any batch, judge and scalar, the ranking is that of asking pair by pair."""
    decoder = plugins.load("models", "decoder")
    bytes_ = tokenizer.byte_level(chat_template="chatml")
    renderer = text.Renderer(bytes_, DataSection(max_length=220, judge_prompt="Which?"))
    rows = [{"id": str(i), "prompt": f"Say {i}.", "responses": [f"{i} {word}" for word in ("a", "bb", "ccc", "dd")],
             "reference": "Nothing."} for i in range(3)]  # fmt: skip
    for heads in (("tokens",), ("score",)):
        config = decoder.Config(
            vocab_size=bytes_.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2,
            num_kv_heads=1, head_dim=8, heads=heads, init_scale=0.3,
        )  # fmt: skip
        model = models.build("decoder", config)
        weights = model.pack(spec.init_params(model.specs(), jax.random.key(0)))
        settings = best_of_n.Config(batch_size=4, buckets=(224,), bootstrap_samples=10)
        scorer = best_of_n.make_scorer(model, renderer, settings)
        written, alone = [], []
        dict(best_of_n.evaluate(model, weights, renderer, rows, settings, written.append, scorer=scorer))
        wide = dataclasses.replace(settings, batch_size=8, share=False)
        dict(best_of_n.evaluate(model, weights, renderer, rows[1:2], wide, alone.append, scorer=scorer))
        asked = reward_model.build(model, weights, renderer, reward_model.settings_of(settings), reader=scorer)
        if asked.kind == "score":
            rewards = asked.rewards([(rows[1]["prompt"], response) for response in rows[1]["responses"]])
            assert written[1]["rewards"] == pytest.approx([reward.value for reward in rewards], abs=1e-5)
            assert written[1]["ranking"] == list(np.argsort([-reward.value for reward in rewards]))
        else:
            pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
            said = asked.compare([(rows[1]["prompt"], rows[1]["responses"][i], rows[1]["responses"][j])
                                  for i, j in pairs])  # fmt: skip
            means = [np.mean([s.score for s, (i, _) in zip(said, pairs) if i == item]) for item in range(4)]
            assert written[1]["wins"] == pytest.approx(means, abs=1e-6)
        assert alone[0]["ranking"] == written[1]["ranking"]
        proxies = [[s["proxy"] for s in record["selections"]] for record in (alone[0], written[1])]
        assert proxies[0] == pytest.approx(proxies[1], abs=1e-5)


def test_the_files_of_an_evaluation_and_its_report(tmp_path):
    """Through the evaluator of the jobs: results, rows, table and picture."""
    decoder = plugins.load("models", "decoder")
    bytes_ = tokenizer.byte_level(chat_template="chatml")
    config = decoder.Config(vocab_size=bytes_.vocab_size, hidden_size=16, intermediate_size=32, num_layers=1,
                            num_heads=2, num_kv_heads=1, head_dim=8, heads=("score",))  # fmt: skip
    model = models.build("decoder", config)
    renderer = text.Renderer(bytes_, DataSection(max_length=60))
    rows = [{"id": f"<{i}>", "prompt": "Say.", "responses": ["a", "bb", "ccc"], "scores": [0, i, 1]} for i in range(4)]
    settings = dataclasses.asdict(best_of_n.Config(bootstrap_samples=10, sizes=(1, 3)))
    evaluator = evaluation.make_evaluator(model, renderer, {"best_of_n": settings})
    params = spec.init_params(model.specs(), jax.random.key(0))
    found = evaluator(params, rows, tmp_path / "eval", {"data": "here"})["best_of_n"]
    assert json.loads((tmp_path / "eval" / "best_of_n.json").read_text()) == found
    written = [json.loads(line) for line in (tmp_path / "eval" / "best_of_n.rows.jsonl").open()]
    assert [row["id"] for row in written] == [row["id"] for row in rows]
    best = written[0]["ranking"][0]
    assert found["oracle"] == pytest.approx(np.mean([row["scores"][best] for row in rows])), (
        "the responses are the same"
    )
    page = report.write_report(tmp_path).read_text("utf-8")
    assert "Best of n" in page and "share of the best" in page
    if importlib.util.find_spec("matplotlib"):
        assert (tmp_path / "plots" / "best_of_n.png").exists()
        assert (tmp_path / "plots" / "best_of_n.csv").read_text().startswith("n,kl,num_lists,proxy")
