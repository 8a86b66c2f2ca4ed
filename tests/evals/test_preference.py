"""The preference evaluation: same scores however batched, right counts, errors that say what is wrong."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from gramjax.core import judgements, plugins, spec, statistics
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import text, tokenizer
from gramjax.data.rows import Drop
from gramjax.evals import preference
from gramjax.models import heads
from gramjax.models import model as models

A, B = 5, 6


@dataclasses.dataclass(frozen=True)
class Letters:
    """A renderer with one token per character: what is tested here is everything after rendering."""

    section: DataSection = DataSection(max_length=200)
    verdict_ids: tuple[int, int] = (A, B)

    def ids(self, text):
        return [10 + ord(c) % 50 for c in text]

    def fit(self, ids):
        if len(ids) > self.section.max_length:
            if self.section.overlong == "drop":
                raise Drop(f"longer than max_length {self.section.max_length}", len(ids))
            ids = ids[: self.section.max_length - 1] + ids[-1:]
        return ids

    def judge(self, prompt, first, second):
        return self.fit([1, *self.ids(prompt), 2, *self.ids(first), 3, *self.ids(second), 4])

    def completion_pair(self, prompt, chosen, rejected):
        if not chosen or not rejected:
            raise Drop("empty answer")
        pair = [self.fit([1, *self.ids(prompt), 2, *self.ids(answer), 4]) for answer in (chosen, rejected)]
        return [(ids, [0.0] * len(ids)) for ids in pair]


def rows(count=21, seed=0):
    generator = np.random.default_rng(seed)
    words = lambda: "".join(chr(c) for c in generator.integers(97, 123, generator.integers(1, 40)))  # noqa: E731
    return [
        {"id": str(i), "subset": "odd" if i % 2 else "even", "prompt": words(), "chosen": words(), "rejected": words()}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def networks():
    """A judge and a scalar model with random weights, large enough in scale that margins differ from zero."""
    out = {}
    for name, kinds in (("judge", ("tokens",)), ("score", ("score",))):
        decoder = plugins.load("models", "decoder")
        config = decoder.Config(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8
        )
        config = dataclasses.replace(config, heads=kinds, init_scale=0.3, tie_word_embeddings=name == "score")
        model = models.build("decoder", config)
        weights = model.pack(spec.init_params(model.specs(), jax.random.key(0)))
        out[name] = model, weights, preference.make_scorer(model, Letters(), preference.Config())
    return out


def run(network, given, **settings):
    """Metrics and rows of an evaluation. The scorers of the fixture are compiled once for all tests."""
    model, weights, scorer = network
    scorer = scorer if settings.get("label_space") != "full" else None
    written = []
    config = preference.Config(**({"bootstrap_samples": 50, "buckets": (128, 256), "batch_size": 8} | settings))
    metrics = dict(preference.evaluate(model, weights, Letters(), given, config, written.append, scorer=scorer))
    return metrics, written


@pytest.mark.parametrize("kind", ["judge", "score"])
def test_scores_do_not_depend_on_batch_size_padding_or_order(networks, kind):
    """Alone, in a batch of 8, with much more right padding, and in reverse order: the same to 1e-5 in float32."""
    given = rows()
    metrics, reference = run(networks[kind], given, buckets=())
    assert len(reference) == len(given) == metrics["num_pairs"]
    assert [r["id"] for r in reference] == [r["id"] for r in given]
    for other in (
        run(networks[kind], given, batch_size=1)[1],
        run(networks[kind], given, buckets=(256,))[1],
        run(networks[kind], given[::-1])[1][::-1],
    ):
        for name in ("score_chosen", "score_rejected", "margin", "probability"):
            np.testing.assert_allclose([r[name] for r in other], [r[name] for r in reference], atol=1e-5)
    assert np.std([r["margin"] for r in reference]) > 1e-2  # the comparison above could fail


def test_every_metric_is_the_same_in_any_order_of_rows(networks):
    one, two = (run(networks["judge"], given)[0] for given in (rows(), rows()[::-1]))
    numbers = [name for name in one if isinstance(one[name], int | float)]
    assert len(numbers) > 20
    assert {name: one[name] for name in numbers} == pytest.approx({name: two[name] for name in numbers}, abs=1e-5)
    assert [b["num_correct"] for b in one["length_buckets"]] == [b["num_correct"] for b in two["length_buckets"]]


def test_judge_scores_are_the_softmax_over_the_two_verdicts_at_the_last_token(networks):
    """Against the plain way: one sequence, no padding, all logits of the last position."""
    model, weights, _ = networks["judge"]
    _, written = run(networks["judge"], rows(3))
    for row, record in zip(rows(3), written):
        probabilities = []
        for first, second in ((row["chosen"], row["rejected"]), (row["rejected"], row["chosen"])):
            tokens = np.array([Letters().judge(row["prompt"], first, second)])
            logits = models_logits(model, weights, tokens)[0, -1, [A, B]]
            probabilities.append(np.exp(logits[0]) / np.exp(logits).sum())
        assert record["p_first"] == pytest.approx(probabilities[0], abs=1e-5)
        assert record["p_second"] == pytest.approx(probabilities[1], abs=1e-5)
        assert record["score_chosen"] == pytest.approx((probabilities[0] + 1 - probabilities[1]) / 2, abs=1e-5)
        assert record["score_chosen"] + record["score_rejected"] == pytest.approx(1.0, abs=1e-9)


class Counting:
    """A model file whose forward notes each time it is traced."""

    def __init__(self, module, traces):
        self.module, self.traces = module, traces

    def forward(self, *arguments):
        self.traces.append(1)
        return self.module.forward(*arguments)


def models_logits(model, weights, tokens):
    """All logits [1, T, V] of one sequence; padded to one length on the right without marking the padding."""
    wide = np.zeros((1, 128), np.int32)
    wide[:, : tokens.shape[1]] = tokens
    logits = jax.jit(lambda w, t: heads.logits(w, model.forward(w, {"tokens": t}).hidden))(weights, wide)
    return np.asarray(logits, np.float64)[:, : tokens.shape[1]]


def test_exchanging_chosen_and_rejected_exchanges_the_scores(networks):
    """V7 through the whole evaluator; also the answers' scores are those of the same strings, so equal bit by bit."""
    given = rows()
    exchanged = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in given]
    for kind in ("judge", "score"):
        one, two = run(networks[kind], given)[1], run(networks[kind], exchanged)[1]
        np.testing.assert_allclose(
            [r["score_chosen"] for r in one], [r["score_rejected"] for r in two], atol=1e-12, err_msg=kind
        )
    assert sum(r["correct"] for r in one) + sum(r["correct"] for r in two) == len(given)


def test_full_vocabulary_weighs_by_the_mass_of_the_verdicts(networks):
    model, weights, _ = networks["judge"]
    metrics, written = run(networks["judge"], rows(4), label_space="full")
    row, record = rows(4)[2], written[2]
    p = []
    for first, second in ((row["chosen"], row["rejected"]), (row["rejected"], row["chosen"])):
        logits = models_logits(model, weights, np.array([Letters().judge(row["prompt"], first, second)]))[0, -1]
        p.append(np.exp(logits - np.logaddexp.reduce(logits)))
    assert record["score_chosen"] == pytest.approx((p[0][A] + p[1][B]) / 2, abs=1e-5)
    assert record["score_rejected"] == pytest.approx((p[0][B] + p[1][A]) / 2, abs=1e-5)
    assert record["verdict_mass"] == pytest.approx((p[0][A] + p[0][B] + p[1][A] + p[1][B]) / 2, abs=1e-5)
    assert 0 < metrics["verdict_mass"] < 1


def test_scalar_scores_have_no_order_metrics(networks):
    metrics, written = run(networks["score"], rows())
    assert metrics["swap_consistency"] is None and metrics["position_bias"] is None
    assert "each answer alone" in metrics["notes"]["position"]
    assert metrics["min_reward"] <= metrics["mean_reward"] <= metrics["max_reward"]
    assert all(r["order"] == "none" and r["p_first"] is None for r in written)
    margins = np.array([r["score_chosen"] - r["score_rejected"] for r in written])
    assert metrics["accuracy"] == np.mean(margins > 1e-5)
    assert metrics["nll"] == pytest.approx(np.mean(np.log1p(np.exp(-margins))))


def test_one_order_is_drawn_by_row_and_stored(networks):
    both = {r["id"]: r for r in run(networks["judge"], rows(40))[1]}
    metrics, one = run(networks["judge"], rows(40)[::-1], both_orders=False)
    orders = [r["order"] for r in one]
    assert {"chosen_first", "rejected_first"} == set(orders) and 8 < orders.count("chosen_first") < 32
    for record in one:
        key = "margin_first" if record["order"] == "chosen_first" else "margin_second"
        sign = 1 if key == "margin_first" else -1
        assert record[key] == pytest.approx(both[record["id"]][key], abs=1e-5)
        assert record["margin"] == pytest.approx(sign * record[key])
    assert metrics["swap_consistency"] is None and "one order" in metrics["notes"]["position"]
    again = [r["order"] for r in run(networks["judge"], rows(40)[::-1], both_orders=False, seed=1)[1]]
    assert again != orders


def test_identical_answers_are_a_tie_and_not_right(networks):
    given = [row | {"rejected": row["chosen"]} for row in rows(4)]
    for kind in ("judge", "score"):
        metrics, written = run(networks[kind], given)
        assert metrics["ties"] == 4 and metrics["accuracy"] == 0.0 and metrics["ece"] == 0.0
        assert all(r["tie"] and not r["correct"] for r in written)


def test_overlong_rows_are_shortened_and_counted_or_dropped_and_counted(networks):
    given = rows(5)
    given[3]["chosen"] = "x" * 300
    metrics, written = run(networks["judge"], given)
    assert metrics["num_pairs"] == 5 and metrics["num_shortened"] == 1 and metrics["num_skipped"] == 0
    assert [r["shortened"] for r in written] == [False, False, False, True, False]
    metrics, written = run(networks["judge"], given, overlong="drop")
    assert metrics["num_pairs"] == 4 and metrics["num_skipped"] == 1
    assert metrics["skipped"] == {"longer than max_length 200": {"count": 1, "first": "3"}}


def test_nothing_to_judge_is_an_error_with_the_reasons(networks):
    given = [row | {"chosen": ""} for row in rows(3)]
    with pytest.raises(DataError, match=r"0 of 3 .*3 empty answer \(first: 0\)"):
        run(networks["score"], given)
    with pytest.raises(DataError, match="no rows"):
        run(networks["score"], [])


def test_settings_that_do_not_fit_are_refused(networks):
    with pytest.raises(UserError, match="needs the head 'score'"):
        run(networks["judge"], rows(2), method="score")
    with pytest.raises(UserError, match="use auto, score, judge, implicit"):
        run(networks["judge"], rows(2), method="vote")
    with pytest.raises(UserError, match="agg is 'mean'"):
        run(networks["judge"], rows(2), agg="mean")
    with pytest.raises(UserError, match="length_edges must increase"):
        run(networks["judge"], rows(2), length_edges=(0.5, 0.1))


def test_everything_written_is_json_and_limit_counts(networks):
    metrics, written = run(networks["judge"], rows(), limit=6)
    assert metrics["num_pairs"] == 6
    json.dumps(metrics, allow_nan=False)
    for record in written:
        json.dumps(record, allow_nan=False)
    again = dict(judgements.summarise(json.loads(json.dumps(written)), bootstrap_samples=50))
    assert {name: metrics[name] for name in again} == again  # a rows file can be counted again without the model


def test_nan_scores_are_counted_and_never_right(networks):
    model, weights, scorer = networks["score"]
    broken = weights | {"score": weights["score"] * np.nan}
    metrics, written = run((model, broken, scorer), rows(3))
    assert metrics["num_nonfinite"] == 3 and metrics["accuracy"] == 0.0 and metrics["nll"] is None
    json.dumps([metrics, written], allow_nan=False)


def test_a_scorer_is_compiled_once_per_shape_and_can_be_kept(networks):
    model, weights, _ = networks["judge"]
    traces = []
    counting = dataclasses.replace(model, module=Counting(model.module, traces))
    config = preference.Config(batch_size=8, bootstrap_samples=10, buckets=(64, 128))
    scorer = preference.make_scorer(counting, Letters(), config)
    for _ in range(2):
        dict(preference.evaluate(counting, weights, Letters(), rows(), config, scorer=scorer))
    assert len(traces) == 2


@pytest.mark.parametrize("kind", ["judge", "score"])
def test_with_the_real_renderer(networks, kind):
    """Bytes as tokens: dialogues and plain rows, a row that is shortened, the same scores in any batch and order."""
    decoder = plugins.load("models", "decoder")
    bytes_ = tokenizer.byte_level(chat_template="chatml")
    section = DataSection(max_length=600, judge_prompt="Which answer is better?")
    renderer = text.Renderer(bytes_, section)
    config = dataclasses.replace(networks[kind][0].config, vocab_size=bytes_.vocab_size)
    model = models.Model(decoder, config)
    weights = model.pack(spec.init_params(model.specs(), jax.random.key(1)))
    say = lambda role, content: [{"role": role, "content": content}]  # noqa: E731
    given = [
        {"id": "plain", "prompt": "What is 2 + 2?", "chosen": "Four.", "rejected": "Perhaps five, or six."},
        {
            "id": "chat",
            "prompt": say("user", "Hi"),
            "chosen": say("assistant", "Hello!"),
            "rejected": say("assistant", "Go away."),
        },
        {"id": "long", "prompt": "Say a lot.", "chosen": "word " * 180, "rejected": "No, certainly not."},
    ]
    settings = preference.Config(batch_size=4, buckets=(640,), bootstrap_samples=10)
    scorer = preference.make_scorer(model, renderer, settings)

    def judge(rows_):
        written = []
        found = dict(preference.evaluate(model, weights, renderer, rows_, settings, written.append, scorer=scorer))
        return found, {record["id"]: record for record in written}

    metrics, together = judge(given)
    assert metrics["num_pairs"] == 3 and metrics["num_shortened"] == 1, metrics["skipped"]
    assert together["long"]["shortened"] and together["long"]["num_tokens"] <= 600
    for row in given[::-1]:
        _, alone = judge([row])
        assert alone[row["id"]]["margin"] == pytest.approx(together[row["id"]]["margin"], abs=1e-5)
    assert len({round(record["margin"], 4) for record in together.values()}) == 3


def test_metrics_of_hand_made_rows():
    """Four pairs, by hand: a right consistent one, a wrong consistent one, one that always says first, one tie."""
    margins = [(2.0, -2.0), (-1.0, 1.0), (3.0, 1.0), (0.0, 0.0)]
    pair = statistics.margin_score(*np.array(margins).T)
    lengths = [(10, 5), (5, 10), (8, 8), (100, 10)]
    records = [
        {
            "id": str(i),
            "subset": "x" if i < 3 else "y",
            "chosen_length": lengths[i][0],
            "rejected_length": lengths[i][1],
            "order": "both",
            "score_chosen": pair.score[i],
            "score_rejected": 1 - pair.score[i],
            "margin": pair.margin[i],
            "margin_first": margins[i][0],
            "margin_second": margins[i][1],
            "p_first": pair.p_first[i],
            "p_second": pair.p_second[i],
            "probability": pair.score[i],
            "log_probability": pair.log_score[i],
            "consistent": bool(pair.consistent[i]),
            "correct": pair.score[i] > 0.5 + 1e-6,
            "tie": abs(pair.score[i] - 0.5) < 1e-6,
        }
        for i in range(4)
    ]
    metrics = dict(judgements.summarise(records, bootstrap_samples=10))
    s = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert metrics["accuracy"] == metrics["accuracy_micro"] == 0.5 and metrics["ties"] == 1
    assert metrics["accuracy_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["swap_consistency"] == 0.75
    bias = [s(2) + s(-2) - 1, s(-1) + s(1) - 1, s(3) + s(1) - 1, 0.0]
    assert metrics["position_bias"] == pytest.approx(np.mean(bias)) and metrics["logit_bias"] == pytest.approx(0.5)
    assert metrics["p_a_first"] == pytest.approx(np.mean([s(2), s(-1), s(3), 0.5]))
    assert metrics["accuracy_first"] == 0.5 and metrics["accuracy_second"] == 0.25
    assert metrics["accuracy_one_order"] == pytest.approx(3 / 8) and metrics["accuracy_dual_order"] == 0.25
    scores = [s(2), s(-1), (s(3) + s(-1)) / 2, 0.5]
    assert metrics["nll"] == pytest.approx(-np.mean(np.log(scores)))
    assert metrics["brier"] == pytest.approx(np.mean((1 - np.array(scores)) ** 2))
    assert metrics["subsets"]["x"]["accuracy"] == pytest.approx(2 / 3) and metrics["subsets"]["y"]["num_pairs"] == 1
    table = {(b["from"], b["to"]): (b["num_pairs"], b["num_correct"]) for b in metrics["length_buckets"]}
    # differences: +0.5, -0.5, 0, +0.9; a bucket holds its lower edge
    assert table == {(-0.5, -0.2): (1, 0), (-0.05, 0.05): (1, 1), (0.5, None): (2, 1)}


def test_rows_of_a_benchmark_are_also_counted_by_its_rules(networks):
    """JudgeBench from the verdicts of both orders, RM-Bench from its cells; the columns stay in the rows."""
    sources = ("mmlu-pro-law", "livebench-math", "livecodebench")
    judged = [{**row, "pair_id": row["id"], "source": sources[i % 3]} for i, row in enumerate(rows(18))]
    metrics, written = run(networks["judge"], judged)
    first, second = ([r[name] > 0.5 for r in written] for name in ("p_first", "p_second"))
    assert metrics["judgebench_official"] == np.mean([a and not b for a, b in zip(first, second)])
    assert metrics["judgebench_averaged"] == metrics["accuracy"]
    assert metrics["judgebench"]["inconsistent"] == pytest.approx(1 - metrics["swap_consistency"])
    assert [r["source"] for r in written] == [row["source"] for row in judged]
    scalar, _ = run(networks["score"], judged)
    assert scalar["judgebench_official"] == scalar["judgebench_averaged"] == scalar["accuracy"]
    places = [(group, i, j) for group in ("a", "b") for i in range(3) for j in range(3)]
    cells = [{**row, "domain": "chat", "group": g, "matrix_id": f"{i}-{j}"} for row, (g, i, j) in zip(rows(18), places)]
    metrics, written = run(networks["judge"], cells)
    assert metrics["rm_bench_overall"] == pytest.approx(metrics["accuracy"]) and "judgebench" not in metrics
    hard = [r["correct"] for r, (_, i, j) in zip(written, places) if i < j]
    assert metrics["rm_bench_hard"] == pytest.approx(np.mean(hard))
    assert "rm_bench" not in run(networks["judge"], rows(3))[0]
