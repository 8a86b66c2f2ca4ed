"""The routes of a judge: comparisons, lists, and no number for an answer alone. The application without a socket."""

import json
import math

import pytest

from gramjax.core import ranking
from gramjax.data.recipes import word_translation as words
from tests.serving.live_server import in_process

SHAPES = ("--config.serve.buckets=(40,)", "--config.serve.sizes=(8,)", "--config.serve.batch_size=8",
          "--config.serve.max_wait_ms=0")  # fmt: skip
ROWS = words.rows("valid", 6)
PROMPT = ROWS[0]["prompt"]
ANSWERS = [ROWS[0]["chosen"], ROWS[1]["chosen"], ROWS[0]["rejected"], ROWS[2]["rejected"]]


@pytest.fixture(scope="module")
def served(tiny_judge):
    client, service = in_process(tiny_judge, *SHAPES)
    with client:
        yield client, service


@pytest.fixture
def client(served):
    return served[0]


def compared(client, **body):
    answer = client.post("/v1/compare", json={"prompt": PROMPT, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_pair_in_both_orders(client, served):
    found = compared(client, responses=ANSWERS[:2])
    (pair,) = found["pairs"]
    assert found["p_a"] == pair["p_a"] == pytest.approx((pair["p_a_shown_first"] + pair["p_a_shown_second"]) / 2)
    (said,) = served[1].model.compare([(PROMPT, *ANSWERS[:2])])
    assert found["p_a"] == pytest.approx(said.score, abs=1e-6)
    assert (found["judge_calls"], found["kind"], found["method"]) == (2, "judge", "pair")
    assert found["order"][0] == (0 if found["p_a"] > 0.5 else 1) and found["verdict"] == "AB"[found["order"][0]]
    turned = compared(client, responses=ANSWERS[1::-1])
    assert turned["p_a"] == pytest.approx(1 - found["p_a"], abs=1e-6)
    one = compared(client, responses=ANSWERS[:2], swap=False)
    assert one["p_a"] == pytest.approx(pair["p_a_shown_first"], abs=1e-6) and one["judge_calls"] == 1
    assert one["pairs"][0]["p_a_shown_second"] is None and one["pairs"][0]["consistent"] is None
    same = compared(client, responses=[ANSWERS[0]] * 2)
    assert (same["p_a"], same["verdict"]) == (pytest.approx(0.5), "tie")


@pytest.mark.parametrize("method,calls", [("round_robin", 12), ("auto", 12), ("linear", 6), ("knockout", 6)])
def test_a_list_is_ordered_by_the_methods_of_ranking(client, served, method, calls):
    found = compared(client, responses=ANSWERS, method=method, top=1 if calls == 6 else 0)
    judge = served[1].model

    def compare(pairs):
        return [said.score for said in judge.compare([(PROMPT, ANSWERS[i], ANSWERS[j]) for i, j in pairs])]

    wanted = ranking.rank(4, compare, method, top=1 if calls == 6 else 0)
    assert found["order"] == list(wanted.order) and found["judge_calls"] == calls == 2 * wanted.comparisons
    assert found["method"] == wanted.method and len(found["pairs"]) == wanted.comparisons
    for score, mean in zip(found["scores"], wanted.wins, strict=True):
        assert (score is None) == (mean is None) and (mean is None or score == pytest.approx(mean, abs=1e-6))


def test_one_answer_has_a_score_against_a_reference_only(client, tiny_judge, tmp_path):
    pair = {"prompt": PROMPT, "response": ANSWERS[0]}
    wanted = compared(client, responses=[ANSWERS[0], ANSWERS[2]])["p_a"]
    query = {"query": [PROMPT + ANSWERS[0]], "prompts": [PROMPT]}
    for route, body in (("/v1/classify", {"input": pair}), ("/get_reward", query)):
        refused = client.post(route, json=body)
        assert refused.status_code == 400 and "has no score for one answer alone" in refused.json()["error"]["message"]
        answer = client.post(route, json={**body, "reference": ANSWERS[2]}).json()
        score = answer["data"][0]["probs"][0] if "data" in answer else answer["rewards"][0]
        assert score == pytest.approx(wanted, abs=1e-6)
    talk = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWERS[0]}]
    asked = [client.post("/classify", json={name: talk, "reference": ANSWERS[2]}) for name in ("messages", "input")]
    assert all(answer.json()["data"][0]["probs"] == [pytest.approx(wanted, abs=1e-6)] for answer in asked)
    both = client.post("/classify", json={"messages": talk, "input": "x", "reference": ANSWERS[2]})
    assert both.status_code == 422 and "only one of them" in both.json()["error"]["message"]
    whole = client.post("/get_reward", json={"query": [PROMPT + ANSWERS[0]], "reference": ANSWERS[2]})
    assert whole.status_code == 400 and "needs the prompt apart" in whole.json()["error"]["message"]
    assert client.post("/v1/score/evaluation", json={"messages": ["text"]}).status_code == 400
    known = tmp_path / "known.jsonl"
    known.write_text(json.dumps({"prompt": PROMPT, "response": ANSWERS[2]}) + "\n")
    other, _ = in_process(tiny_judge, *SHAPES, f"--config.serve.reference={known}")
    with other:
        scores = other.post("/get_reward", json=query).json()["rewards"]
        assert scores == pytest.approx([wanted], abs=1e-6)
        lost = other.post("/v1/classify", json={"input": {"prompt": "another", "response": "x"}})
        assert lost.status_code == 400 and "no reference answer" in lost.json()["error"]["message"]


@pytest.mark.parametrize(
    "body,status,words",
    [
        ({"responses": ANSWERS[:1]}, 422, "at least 2"),
        ({"responses": ANSWERS, "method": "swiss"}, 422, "method"),
        ({"responses": ANSWERS[:2], "method": "linear"}, 400, "more than two"),
        ({"responses": ANSWERS[:2], "rationale": True}, 400, "writes no rationales"),
        ({"responses": ["word " * 80, "x"]}, 400, "tokens are more than 40"),
        ({"responses": ["x", [{"role": "assistant", "content": "y"}]]}, 400, "all be texts or all be messages"),
        ({"responses": ["x"] * 300}, 413, "more than a request may have (256)"),
    ],
)
def test_what_cannot_be_compared_is_refused(client, body, status, words):
    answer = client.post("/v1/compare", json={"prompt": PROMPT, **body})
    assert answer.status_code == status and words in answer.json()["error"]["message"]


def test_broken_weights_give_no_number(client, served, monkeypatch):
    from gramjax.scoring.reward_model import Comparison, RewardModel

    monkeypatch.setattr(RewardModel, "comparison", lambda *_: Comparison(math.nan))
    answer = client.post("/v1/compare", json={"prompt": PROMPT, "responses": ANSWERS[:2]})
    assert answer.status_code == 500 and "no finite number" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "settings,words",
    [
        (("--config.serve.special_tokens=True",), "needs the prompt apart from the answer"),
        (("--config.serve.reference=gone",), "no file 'gone'"),
        (("--config.serve.buckets=(16,)",), "at least config.data.max_length=40"),
        (("--config.serve.queue=100",), "no room for two sequences of each"),
        (("--config.sampling.n=4",), "sampling.n is for judges that write rationales"),
        (("--config.serve.instruction=Judge.",), "serve.instruction is for judges that write"),
        (("--config.serve.votes=votes",), "serve.votes is for judges that write"),
        (("--config.serve.method=rationale", "--config.serve.votes=mean"), "is .mean.; choose one of votes"),
    ],
)
def test_settings_that_do_not_fit_a_judge(tiny_judge, settings, words):
    from gramjax.core.errors import UserError

    with pytest.raises(UserError, match=words):
        in_process(tiny_judge, *settings)
