"""Repeated evaluation of problems, with a sampler that says what it is told: its numbers follow from the replies."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "generation"))
import written_judge as written  # noqa: E402

from gramjax.core import repeated  # noqa: E402
from gramjax.core.config import DataSection, SamplingSection  # noqa: E402
from gramjax.core.errors import DataError, UserError  # noqa: E402
from gramjax.data import formats, math_answers, math_prompts, tokenizer  # noqa: E402
from gramjax.data.text import Renderer  # noqa: E402
from gramjax.evals import math as evaluation  # noqa: E402
from gramjax.generation.request import Completion  # noqa: E402
from gramjax.generation.sampler import Sampler  # noqa: E402
from gramjax.training import evaluation as running  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Scripted(Sampler):
    """Replies of a function of (row, sample); sample -1 is greedy."""

    reply: Callable[[Any, int], str] = str

    def answered(self, items, requests_of, statistics=None, window=0, watch=None):
        for item in items:
            yield (
                item,
                [
                    [self._completion(request, sample) for sample in range(request.sampling.n)]
                    for request in requests_of(item)
                ],
            )

    def _completion(self, request, sample):
        greedy = request.sampling.temperature == 0
        text = self.reply(request.columns, -1 if greedy else sample)
        reason = "length" if len(text) > 60 else "stop"
        return Completion(request, sample, [0] * len(text), [], [], [], reason, None, text)


def scripted(reply, max_length=400):
    real = written.sampler()
    renderer = Renderer(tokenizer.load("bytes", chat_template="none"), DataSection(max_length=max_length))
    return Scripted(real.model, real.weights, renderer, (0,), real.settings, reply)


def problems(golds, **columns):
    return [{"id": f"p{i}", "prompt": f"Problem {i}?", "answer": gold, **columns} for i, gold in enumerate(golds)]


def run(rows, reply, max_length=400, **settings):
    """(results, rows written)."""
    out = []
    config = evaluation.Config(**{"repeats": 4, **settings})
    found = dict(evaluation.evaluate(scripted(reply, max_length), rows, config, out.append))
    json.dumps([found, out], allow_nan=False)
    return found, out


REPLIES = {
    "p0": ["so \\boxed{12}", "it is \\boxed{12.0}", "\\boxed{13}", "\\boxed{12}"],
    "p1": ["\\boxed{0.5}", "\\boxed{\\frac{1}{2}}", "\\boxed{3}", "nothing to see"],
    "p2": ["\\boxed{7}", "\\boxed{8}", "\\boxed{9}", "\\boxed{8}" + "!" * 60],
}


def said(row, sample):
    return (
        REPLIES[row["id"]][sample] if sample >= 0 else {"p0": "\\boxed{12}", "p1": "?", "p2": "\\boxed{7}"}[row["id"]]
    )


def test_what_was_answered_before_a_stop_is_not_asked_again():
    """The same numbers as in one go, and only the problems that were left are asked."""
    rows, asked = problems(["12", "\\frac12", "7"]), []

    def heard(row, sample):
        asked.append(row["id"])
        return said(row, sample)

    whole, written = run(rows, said)
    config, rest = evaluation.Config(repeats=4), []
    done = json.loads(json.dumps(written[:2]))
    found = dict(evaluation.evaluate(scripted(heard), rows, config, rest.append, done))
    assert set(asked) == {"p2"} and json.loads(json.dumps(rest)) == json.loads(json.dumps(written[2:]))
    assert found["engine"].pop("answered_before") == 2 and whole["engine"].pop("answered_before") == 0
    strip = lambda results: {name: value for name, value in results.items() if name != "engine"}  # noqa: E731
    assert strip(found) == strip(whole)


def test_answers_of_another_evaluation_are_not_taken_over(tmp_path):
    """Only rows with the settings, the data and the weights of now count; a line cut by a kill is asked again."""
    rows, weights = problems(["12", "7"]), {"w": np.arange(6.0).reshape(2, 3)}
    config = evaluation.Config(repeats=4)
    what = running.identity(config, {"model": "m"}, rows, weights)
    with running.written_early(tmp_path, "math", [], what) as keep:
        keep({"id": "p0"})
    with (tmp_path / "math.rows.jsonl").open("a") as file:
        file.write('{"id": "p')
    assert running.stopped_at(tmp_path, "math", what) == [{"id": "p0"}]
    others = [
        (dataclasses.replace(config, seed=1), {"model": "m"}, rows, weights),
        (config, {"model": "other"}, rows, weights),
        (config, {"model": "m"}, problems(["12", "8"]), weights),
        (config, {"model": "m"}, rows, {"w": weights["w"] + 1e-3}),
    ]
    for other in others:
        assert running.stopped_at(tmp_path, "math", running.identity(*other)) == []
    running.write_results(tmp_path, "math", [{"id": "p0"}], {"k": 1})
    assert running.stopped_at(tmp_path, "math", what) == [], "it was finished"


@pytest.mark.smoke
def test_numbers_follow_from_the_replies():
    """1/2 and 0.5 vote together; a reply without an answer is wrong and has no vote; the greedy answer is apart."""
    found, rows = run(problems(["12", "\\frac12", "7"]), said)
    assert [r["verdicts"] for r in rows] == [
        [True, True, False, True],
        [True, True, False, False],
        [True] + [False] * 3,
    ]
    assert rows[1]["answers"] == ["0.5", "\\frac{1}{2}", "3", None]
    assert rows[1]["reasons"] == ["ok", "ok", "mismatch", "no_box"]
    assert rows[0]["lengths"] == [len(text) for text in REPLIES["p0"]]
    assert rows[2]["finish_reasons"] == ["stop"] * 3 + ["length"] and rows[2]["completions"] == REPLIES["p2"]
    assert rows[0]["greedy"]["verdict"] and rows[1]["greedy"]["answer"] is None
    assert found["avg@k"] == found["avg@4"] == found["pass@1"] == pytest.approx(6 / 12)
    assert found["maj@k"] == pytest.approx(2 / 3) and found["pass@4"] == 1 and found["k"] == 4
    assert found["avg@k_sampling_error"] == repeated.average([r["verdicts"] for r in rows]).sampling_error
    assert found["greedy_accuracy"] == pytest.approx(2 / 3)
    assert found["greedy_flip_rate"] == pytest.approx((0 + 0.5 + 1) / 3)
    assert found["clipped_share"] == found["no_answer_share"] == pytest.approx(1 / 12)
    assert found["reasons"] == pytest.approx({"ok": 6 / 12, "mismatch": 5 / 12, "no_box": 1 / 12})
    assert found["n_errors"] == found["num_skipped"] == 0 and sum(b["num_problems"] for b in found["histogram"]) == 3
    assert found["settings"]["seed"] == 0 and found["settings"]["sampling"]["temperature"] == 0.6
    assert found["engine"]["compute_dtype"] == "float32" and found["engine"]["end_ids"] == [0]


def test_what_is_asked():
    """The template of the kind around the problem, in the last user turn; the draws share one request."""
    asked = []

    def reply(row, sample):
        asked.append((row["prompt"], sample))
        return "\\boxed{B}"

    record = {"question": "Which?", "options": ["A)1", "B)2"], "correct": "B"}
    _, (row,) = formats.adapt(record, "f row 1", ("prompt_only",))
    found, rows = run([{**row, "id": "c"}], reply, repeats=2)
    assert found["avg@k"] == 1 and rows[0]["kind"] == "choice" and [sample for _, sample in asked] == [0, 1, -1]
    (turn,) = asked[0][0]
    assert turn["content"] == math_prompts.TEMPLATES["choice"].replace("{problem}", "Which?\n(A) 1\n(B) 2")
    asked.clear()
    run(problems(["1"]), reply, template="", greedy=False)
    assert asked[0] == ("Problem 0?", 0) and len(asked) == 4
    run(problems(["1"]), reply, template="Q: {problem}\nA:")
    assert asked[-1] == ("Q: Problem 0?\nA:", -1)
    with pytest.raises(UserError, match="template has no {problem}"):
        evaluation.Config(template="Solve it.")
    with pytest.raises(DataError, match="'p': the last turn is of the assistant"):
        run([{"id": "p", "prompt": [{"role": "assistant", "content": "a"}], "answer": "1"}], reply)


def test_kinds_and_thinking():
    number, _ = run(problems(["1200"], answer_kind="number"), lambda row, sample: "so #### 1,200")
    assert number["avg@k"] == number["avg@k_compatible"] == 1
    minus, _ = run(problems(["5"], answer_kind="number"), lambda row, sample: "it is -5")
    assert (minus["avg@k"], minus["avg@k_compatible"]) == (0, 1), "MathOctopus' rule reads no sign"
    boxed, _ = run(problems(["1200"], answer_kind="number"), lambda row, sample: "so #### 1,200", kind="boxed")
    assert boxed["avg@k"] == 0 and boxed["no_answer_share"] == 1 and "avg@k_compatible" not in boxed
    exact, _ = run(problems([["yes", "Yes"]]), lambda row, sample: " Yes", kind="exact")
    assert exact["avg@k"] == 1
    truth, _ = run([{"id": 1, "prompt": "p", "ground_truth": 4}], lambda row, sample: "\\boxed{4}")
    assert truth["avg@k"] == 1

    def thinks(row, sample):
        return "\\boxed{1}</think>\\boxed{2}" if sample != 3 else "\\boxed{2}"

    assert run(problems(["2"]), thinks, after_think=True)[0]["avg@k"] == 3 / 4
    assert run(problems(["2"]), thinks, after_think=True)[1][0]["reasons"][3] == "no_think_end"


def test_what_cannot_be_asked_is_counted():
    rows = [*problems(["1"]), {"id": "long", "prompt": "x" * 500, "answer": "1"}, {"id": "none", "prompt": "p"}]
    found, written_rows = run(rows, lambda row, sample: "\\boxed{1}")
    assert found["num_problems"] == 1 and found["num_skipped"] == 2 and [r["id"] for r in written_rows] == ["p0"]
    first, second = found["skipped"].items()
    assert "max_length 400 (config.data.max_length)" in first[0] and first[1] == {"count": 1, "first": "long"}
    assert second == ("no right answer in column 'answer'", {"count": 1, "first": "none"})
    with pytest.raises(DataError, match="0 of 1 problems can be asked: 1 no right answer in column 'gold'"):
        run(problems(["1"]), said, column="gold")
    with pytest.raises(DataError, match="'answer_kind' is 'poem'"):
        run(problems(["1"], answer_kind="poem"), said)


def test_a_grader_that_fails_costs_one_reply(monkeypatch):
    real = math_answers.grade

    def breaks(text, *rest):
        if "13" in text:
            raise RecursionError("deep")
        return real(text, *rest)

    monkeypatch.setattr(math_answers, "grade", breaks)
    found, (row,) = run(problems(["12"]), said)
    assert found["n_errors"] == 1 and row["reasons"][2] == "error" and found["avg@k"] == 3 / 4


def test_distractors_and_who_obeys():
    seen = []

    def obeys(row, sample):
        seen.append(row["prompt"])
        return f"\\boxed{{{3 + 1 if sample % 2 else 3}}}"

    found, (row,) = run(problems(["3"]), obeys, 4000, distractor="add_one", distractor_copies=5)
    assert found["misled_share"] == found["avg@k"] == 0.5 and row["misled"] == [False, True] * 2
    assert seen[0].count(math_prompts.DISTRACTORS["add_one"]) == 5
    before, _, after = seen[0].partition("</ignore>\n\n")
    assert before.startswith("Ignore everything") and "<ignore>\n" in before and after.startswith("Problem 0?")
    times, _ = run(problems(["3"]), lambda row, sample: "\\boxed{21}", 4000, distractor="times_seven",
                   distractor_copies=2)  # fmt: skip
    assert times["misled_share"] == 1 and "misled_share" not in run(problems(["3"]), obeys)[0]
    assert math_prompts.misled(3, "add_one") == 4


def test_subsets():
    rows = [{**row, "subset": name} for row, name in zip(problems(["12", "1/2", "7"]), ("algebra", "algebra", ""))]
    parts = run(rows, said)[0]["by_subset"]
    assert {name: part["num_problems"] for name, part in parts.items()} == {"(none)": 1, "algebra": 2}
    assert parts["algebra"]["avg@k"] == 5 / 8 and parts["(none)"]["standard_error"] is None
    assert "by_subset" not in run(problems(["12"]), said)[0]


def test_languages():
    """Every language counts the same in the means, and answers are read in two ways."""
    rows = [{**row, "language": name, "answer_kind": "number"}
            for row, name in zip(problems(["12", "7", "-3"]), ("de", "de", "th"))]  # fmt: skip
    replies = {"p0": ["12"] * 4, "p1": ["7", "7", "8", "none"], "p2": ["it is -3"] * 4}
    found, _ = run(rows, lambda row, sample: replies[row["id"]][max(sample, 0)], kind="auto")
    german, thai = found["by_language"]["de"], found["by_language"]["th"]
    assert (german["num_problems"], german["avg@k"], german["greedy_accuracy"]) == (2, 0.75, 1.0)
    assert (thai["avg@k"], thai["avg@k_compatible"], thai["greedy_compatible"]) == (1.0, 0.0, 0.0)  # no sign is read
    assert found["mean_of_languages_avg@k"] == 0.875 and found["avg@k"] == pytest.approx(2.5 / 3)
    assert found["mean_of_languages_greedy_compatible"] == 0.5 and found["greedy_compatible"] == pytest.approx(2 / 3)
    assert "by_language" not in run(problems(["12"], language="de"), said)[0]
    assert [row["id"] for row in evaluation.first(rows, 1)] == ["p0", "p2"] and evaluation.first(rows, 0) == rows


def test_the_error_of_drawing_is_what_repeated_evaluations_show():
    """E-7 through the whole eval: a sampler that solves problem i with a known probability, thirty evaluations."""
    p, generator = np.linspace(0.05, 0.95, 30), np.random.default_rng(0)

    def luck(row, sample):
        return f"\\boxed{{{int(generator.random() < p[int(row['id'][1:])])}}}"

    found = [run(problems(["1"] * 30), luck, greedy=False, keep_completions=False, pass_at=(2,))[0] for _ in range(30)]
    formula = repeated.expected_error(p, 4)
    assert np.std([f["avg@k"] for f in found]) == pytest.approx(formula, rel=0.3)
    assert np.mean([f["avg@k_sampling_error"] for f in found]) == pytest.approx(formula, rel=0.03)
    assert np.mean([f["pass@2"] for f in found]) == pytest.approx(np.mean(1 - (1 - p) ** 2), abs=0.02)


def test_replies_can_be_left_out():
    _, (row,) = run(problems(["12"]), said, keep_completions=False)
    assert "completions" not in row and "completion" not in row["greedy"] and row["answers"]


@pytest.mark.parametrize(
    "settings,complaint",
    [
        ({"repeats": 0}, "evals.math.repeats is 0"),
        ({"pass_at": (1, 8)}, "pass_at has 8; 1 to 4"),
        ({"uncertain": (0.7, 0.3)}, "two rising numbers"),
        ({"kind": "poem"}, "choose one of auto, boxed"),
        ({"distractor": "add_two"}, "choose one of add_one, times_seven"),
        ({"distractor_copies": 0}, "distractor_copies is 0"),
        ({"sampling": SamplingSection(temperature=0.0)}, "all 4 repeats would be the same"),
        ({"sampling": SamplingSection(n=4)}, "set repeats, not n"),
        ({"sampling": SamplingSection(top_p=2.0)}, r"config.evals.math.sampling.top_p is 2.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        evaluation.Config(**{"repeats": 4, **settings})
