"""A judge that writes its reasons, over HTTP: the judgements of `generation.judging`, whoever asks and however many."""

import concurrent.futures

import pytest

from gramjax.generation import judging
from gramjax.serving import application
from gramjax.serving.written import Drawer, WrittenService, row_of
from tests.generation import written_judge

PAIRS = written_judge.pairs(4)
PROMPT, (ONE, TWO) = PAIRS[0]["prompt"], PAIRS[0]["responses"]


@pytest.fixture(scope="module")
def served():
    from starlette.testclient import TestClient

    sampler = written_judge.sampler(lean=1.0, unreadable=-1.0)
    service = WrittenService("written", sampler=sampler, batcher=Drawer(sampler, 64), judging=written_judge.judging(4))
    with TestClient(application.make(service)) as client:
        yield client, service


@pytest.fixture
def client(served):
    return served[0]


def compared(client, prompt, responses, **body):
    answer = client.post("/v1/compare", json={"prompt": prompt, "responses": responses, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(service, pair):
    ((_, judged),) = judging.judge([row_of(pair)], service.sampler, service.judging)
    return judged


def test_a_pair_has_the_judgements_that_were_drawn_and_a_rationale(client, served):
    judged = expected(served[1], (PROMPT, ONE, TWO))
    found = compared(client, PROMPT, [ONE, TWO], rationale=True)
    (pair,) = found["pairs"]
    assert [one["text"] for one in pair["judgements"]] == [draw.reply for draw in judged.draws]
    assert [one["verdict"] for one in pair["judgements"]] == [draw.verdict for draw in judged.draws]
    assert [one["a_shown"] for one in pair["judgements"]].count("second") == 2
    score = judged.over_orders(judged.values("probability"))
    assert found["p_a"] == pytest.approx(score, abs=1e-6) and found["kind"] == "rationale"
    assert pair["p_a"] == pytest.approx((pair["p_a_shown_first"] + pair["p_a_shown_second"]) / 2)
    sure = max((d for d in judged.draws if d.verdict == found["verdict"]), key=lambda d: abs(d.probability - 0.5))
    assert pair["rationale"] == sure.reply and "is better" in sure.reply
    drawn = sum(draw.tokens for draw in judged.draws)
    assert found["judge_calls"] == 4 and found["usage"]["completion_tokens"] == drawn > 0
    plain = compared(client, PROMPT, [ONE, TWO])
    assert plain["p_a"] == found["p_a"] and "rationale" not in plain["pairs"][0]
    once = compared(client, PROMPT, [ONE, TWO], swap=False, rationale=True)["pairs"][0]
    assert {one["a_shown"] for one in once["judgements"]} == {"first"} and once["p_a_shown_second"] is None
    same = compared(client, PROMPT, [ONE, ONE])
    assert (same["p_a"], same["verdict"], same["judge_calls"]) == (0.5, "tie", 0)


def test_under_load_everybody_has_the_answer_that_he_has_alone(client, served):
    """And nothing is compiled that the first pairs and the warm-up did not need."""
    before = served[1].warm_up()
    asked = [(row["prompt"], row["responses"]) for row in PAIRS]
    alone = [compared(client, *one)["p_a"] for one in asked]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: compared(client, *asked[n % 4])["p_a"], range(24)))
    assert found == pytest.approx([alone[n % 4] for n in range(24)], abs=1e-6)
    health = client.get("/health").json()
    assert health["waiting"] == 0 and health["programs"] == before


def test_lists_references_and_what_is_refused(client):
    answers = [ONE, TWO, *PAIRS[1]["responses"]]
    found = compared(client, PROMPT, answers, method="knockout", top=1)
    assert found["method"] == "knockout" and len(found["pairs"]) == 3 and len(found["order"]) == 1
    query = {"query": [PROMPT + ONE], "prompts": [PROMPT]}
    assert client.post("/get_reward", json=query).status_code == 400
    rewards = client.post("/get_reward", json={**query, "reference": TWO}).json()
    assert rewards["rewards"] == [pytest.approx(compared(client, PROMPT, [ONE, TWO])["p_a"], abs=1e-6)]
    assert list(rewards["extra_logs"]) == ["unreadable"] and 0 <= rewards["extra_logs"]["unreadable"][0] <= 1
    long = client.post("/v1/compare", json={"prompt": "x " * 400, "responses": [ONE, TWO]})
    assert long.status_code == 400 and "cannot be judged" in long.json()["error"]["message"]
    many = client.post("/v1/compare", json={"prompt": PROMPT, "responses": [f"{ONE} {n}" for n in range(14)]})
    assert many.status_code == 413 and "more than can wait (64)" in many.json()["error"]["message"]

