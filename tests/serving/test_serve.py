"""A real server and real clients: one score whoever asks and however many ask, bad requests by the hundred, the end."""

import concurrent.futures
import json
import random
import time

import httpx
import pytest

from gramjax import cli
from gramjax.data.recipes import word_translation as words
from tests.serving.live_server import LiveServer

TOKEN = "a token of the tests"
LOAD_SECONDS = 3.0
SHAPES = ("--config.serve.buckets=(24,40)", "--config.serve.sizes=(1,8)", "--config.serve.batch_size=8")
LIMITS = ("--config.serve.max_items=16", "--config.serve.queue=64", "--config.serve.max_bytes=20000")
CLOSE = 1e-5
"""Scores of one text in batches of different shapes may differ by rounding only."""


@pytest.fixture(scope="module")
def server(tiny_scalar):
    command = ("-m", "gramjax", "serve", "--config=serve", f"--config.model.path={tiny_scalar}")
    where = ("--config.serve.port=0", "--config.serve.name=tiny")
    made = LiveServer(*command, *where, *SHAPES, *LIMITS, GRAMJAX_SERVE_TOKEN=TOKEN)
    yield made
    made.stop()


@pytest.fixture
def client(server):
    with server.client(TOKEN) as made:
        yield made


@pytest.fixture(scope="module")
def scored(tiny_scalar, tmp_path_factory):
    """What `gramjax score` says: {(prompt, answer): score}."""
    folder = tmp_path_factory.mktemp("expected")
    rows = [
        {"id": f"{r['id']}-{name}", "prompt": r["prompt"], "completion": r[name]}
        for r in words.rows("valid", 30) for name in ("chosen", "rejected")
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli.main(["score", "--config=score", f"--config.model.path={tiny_scalar}", f"--workdir={folder / 'run'}",
                     f"--config.data.path={folder / 'rows.jsonl'}"])  # fmt: skip
    assert done == 0
    lines = (folder / "run" / "rows.jsonl").read_text().splitlines()
    return {(row["prompt"], row["completion"]): row["score"] for row in map(json.loads, lines)}


def programs(client):
    return client.get("/health").json()["programs"]


@pytest.mark.smoke
def test_every_route_gives_the_score_of_gramjax_score(client, scored):
    pairs = list(scored)[:5]
    wanted = [scored[pair] for pair in pairs]
    items = [{"prompt": p, "response": a} for p, a in pairs]
    for route in ("/v1/classify", "/classify"):
        body = {"model": "tiny", "input": items, "use_activation": False}
        found = client.post(route, json=body).json()
        assert [d["probs"] for d in found["data"]] == [[pytest.approx(w, abs=CLOSE)] for w in wanted]
        assert found["model"] == "tiny" and found["usage"]["total_tokens"] > 40
        assert [d["index"] for d in found["data"]] == list(range(5))
    probability = client.post("/v1/classify", json={"input": items[0]}).json()["data"][0]["probs"][0]
    assert probability == pytest.approx(1 / (1 + 2.718281828459045 ** -wanted[0]), abs=CLOSE)
    body = {"query": [p + a for p, a in pairs], "prompts": [p for p, _ in pairs], "labels": ["x"] * 5}
    found = client.post("/get_reward", json=body).json()
    assert found["rewards"] == found["scores"] == pytest.approx(wanted, abs=CLOSE) and found["extra_logs"] == {}
    for a, b in ((0, 1), (2, 4)):
        if pairs[a][0] == pairs[b][0]:
            body = {"prompt": pairs[a][0], "responses": [pairs[a][1], pairs[b][1]]}
            found = client.post("/v1/compare", json=body).json()
            assert found["scores"] == pytest.approx([wanted[a], wanted[b]], abs=CLOSE) and found["method"] == "score"
            assert found["order"] == sorted((0, 1), key=lambda i: -found["scores"][i])
    texts = [p + " " + a for p, a in pairs]
    whole = client.post("/v1/score/evaluation", json={"model": "tiny", "messages": texts}).json()["scores"]
    assert client.post("/get_reward", json={"query": texts}).json()["rewards"] == pytest.approx(whole, abs=CLOSE)
    trainer = {"model": "model", "messages": texts}  # as LLaMA-Factory says it, whatever the model is called
    assert client.post("/v1/score/evaluation", json=trainer).json()["scores"] == pytest.approx(whole, abs=CLOSE)
    verl = client.post("/classify", json={"model": "tiny", "input": texts[0], "activation": False}).json()
    assert verl["data"][-1]["probs"][-1] == pytest.approx(whole[0], abs=CLOSE)
    card = client.get("/v1/models").json()["data"][0]
    assert (card["id"], card["kind"], card["max_length"]) == ("tiny", "score", words.MAX_LENGTH)


def test_under_load_every_score_is_right_and_nothing_is_compiled(server, client, scored):
    """Sixteen clients at once, requests of one to four texts, for some seconds."""
    before, pairs, until = programs(client), list(scored), time.monotonic() + LOAD_SECONDS

    def work(seed):
        draw, count, worst = random.Random(seed), 0, 0.0
        with server.client(TOKEN) as own:
            while count < 3 or time.monotonic() < until:  # a machine that is busy may need longer for three
                asked = draw.sample(pairs, draw.randint(1, 4))
                body = {"query": [p + a for p, a in asked], "prompts": [p for p, _ in asked]}
                answer = own.post("/get_reward", json=body)
                assert answer.status_code == 200, answer.text
                gaps = [abs(r - scored[pair]) for r, pair in zip(answer.json()["rewards"], asked, strict=True)]
                worst, count = max(worst, *gaps), count + 1
        return count, worst

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(work, range(16)))
    assert sum(count for count, _ in found) > 32 and max(worst for _, worst in found) < CLOSE
    after = client.get("/health").json()
    assert after["programs"] == before == 4, "two lengths, two sizes"
    assert after["waiting"] == 0


def test_more_than_can_wait_is_turned_away_and_says_when_to_come_back(server, client, scored):
    pairs = list(scored)[:16]
    body = {"query": [p + a for p, a in pairs], "prompts": [p for p, _ in pairs]}

    def ask(_):
        with server.client(TOKEN) as own:
            return [own.post("/get_reward", json=body) for _ in range(6)]

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = [answer for some in pool.map(ask, range(24)) for answer in some]
    turned_away = [answer for answer in answers if answer.status_code == 429]
    assert {answer.status_code for answer in answers} <= {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in turned_away)
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["rewards"] == pytest.approx([scored[pair] for pair in pairs], abs=CLOSE)
    assert client.get("/health").json()["waiting"] == 0


def test_the_token_is_asked_for(server):
    with server.client() as nobody:
        assert nobody.get("/health").status_code == 200
        wrong = ("", "Bearer wrong", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff\xfe")
        for given in ({"authorization": value.encode("latin-1")} if value else {} for value in wrong):
            for answer in (nobody.get("/v1/models", headers=given), nobody.post("/get_reward", json={}, headers=given)):
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["type"] == "authentication_error"
        assert nobody.get("/v1/models", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200


def test_limits_and_wrong_places(client):
    def status(answer, status, words):
        assert answer.status_code == status and words in answer.json()["error"]["message"], answer.text

    status(client.post("/get_reward", json={"query": ["x" * 30000]}), 413, "larger than 20,000 bytes")
    stream = (b" " * 5000 for _ in range(5))  # no length is said beforehand
    kind = {"content-type": "application/json"}
    status(client.post("/get_reward", content=stream, headers=kind), 413, "larger than 20,000 bytes")
    many = client.post("/get_reward", json={"query": ["x"] * 17})
    status(many, 413, "17 texts are more than a request may have (16)")
    status(client.post("/get_reward", json={"query": ["ok", "word " * 90]}), 400, "tokens are more than 40")
    status(client.post("/get_reward", json={"query": ["ok", "word " * 90]}), 400, "input 1:")
    body = {"messages": ["a b c d"], "max_length": 2}
    status(client.post("/v1/score/evaluation", json=body), 400, "tokens are more than 2; it is not shortened")
    status(client.post("/get_reward", content=b"{}", headers={"content-type": "text/plain"}), 415, "application/json")
    status(client.post("/get_reward", content=b"{}", headers={**kind, "content-encoding": "gzip"}), 415, "compressed")
    status(client.post("/v1/classify", json={"model": "gpt", "input": "x"}), 404, "only 'tiny'")
    status(client.get("/v1/rewards"), 404, "no such route")
    status(client.get("/get_reward"), 405, "not with this method")
    status(client.post("/v1/classify", json={}), 422, "give 'input'")
    status(client.post("/get_reward", json={"query": "x", "prompts": ["y"]}), 400, "does not begin with its prompt")
    status(client.post("/v1/compare", json={"prompt": "p", "responses": ["a", "b"], "swap": False}), 400, "for judges")
    message = {"role": "user", "content": "hello"}
    status(client.post("/v1/classify", json={"input": [message]}), 400, "chat template")
    status(client.post("/v1/classify", json={"input": [{**message, "role": "boss"}]}), 422, "input")


def malformed(count):
    """Bodies that no route can use, the same every time."""
    draw = random.Random(0)
    good = json.dumps({"query": ["Translate: river"], "prompts": ["Translate:"], "labels": None}).encode()
    fixed = [
        b"", b"null", b"[]", b"0", b'"text"', b"{", b"{]", b"{}{}", b'{"query": NaN}', b'{"query": [1e999]}',
        b'{"query": -Infinity}',
        b'{"query": ["\\ud800"]}', b'{"query": ["\\u0000"]}', b'{"query": ["\xff"]}',
        b'{"query": ["a"], "query": ["b"]}',
        b'{"\\udc00": 1}', b"[" * 5000, b'{"query":' * 900 + b"1" + b"}" * 900, b'{"query": ' + b"9" * 6000 + b"}",
        b'{"query": []}', b'{"query": null}', b'{"query": [null]}', b'{"query": [["a"]]}', b'{"query": {"a": 1}}',
        b'{"query": true}',
        b'{"queries": ["a"]}', b'{"query": ["a"], "extra": 1}', b'{"query": ["a"], "prompts": "a"}', b"\xef\xbb\xbf{}",
        '{"query": ["a"]}'.encode("utf-16"), b'{"query": ["a"],}', b"{'query': ['a']}", b'{"query": ["a"]} x',
    ]  # fmt: skip
    yield from fixed
    for _ in range(count - len(fixed)):
        body = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(body))
            body[place : place + draw.randint(0, 3)] = bytes(draw.choices(b'{}[]",:\\\x00\xf0', k=draw.randint(0, 2)))
        yield bytes(body)


def proper(body):
    """Whether a body that was changed at random is still one that the route takes."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict) or not {"query"} <= set(value) <= {"query", "prompts", "labels", "reference"}:
        return False
    texts = value["query"] if isinstance(value["query"], list) else [value["query"]]
    return all(isinstance(text, str) for text in texts) and bool(texts)


def test_two_hundred_malformed_requests_leave_it_answering(client, scored):
    bodies = [body for body in malformed(280) if not proper(body)]
    assert len(bodies) >= 200
    for body in bodies:
        answer = client.post("/get_reward", content=body, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500, (body[:200], answer.status_code)
        assert set(answer.json()["error"]) == {"message", "type", "code", "param"}, body[:200]
    (prompt, answer), score = next(iter(scored.items()))
    found = client.post("/get_reward", json={"query": [prompt + answer], "prompts": [prompt]}).json()
    assert found["rewards"] == pytest.approx([score], abs=CLOSE) and programs(client) == 4


def test_its_own_schema_is_true(server, client):
    """Requests made from the OpenAPI schema, right and wrong ones: no crash, and every answer is one it promises."""
    import hypothesis
    import schemathesis
    from schemathesis import checks

    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.config.update(base_url=server.url)
    wanted = (
        checks.not_a_server_error,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.content_type_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
    )
    wrong = schemathesis.specs.openapi.checks.negative_data_rejection
    seen = []

    for result in schema.get_all_operations():
        operation = result.ok()
        quick = hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None,
                                    suppress_health_check=list(hypothesis.HealthCheck))  # fmt: skip

        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

            @quick
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                answer = case.call(headers={"authorization": f"Bearer {TOKEN}"}, timeout=60)
                seen.append(answer.status_code)
                too_large = answer.status_code == 413  # refused before anybody looks at the fields
                case.validate_response(answer, checks=[*wanted] if too_large else [*wanted, wrong])

            try:
                check()
            except hypothesis.errors.Unsatisfiable:  # a route without parameters cannot be asked wrongly
                assert mode is schemathesis.GenerationMode.NEGATIVE
    assert 200 in seen and 422 in seen and programs(client) == 4


def test_sigterm_ends_it_well(server):
    assert server.stop() == 0
    assert server.said().rstrip().endswith("gramjax: stopped") and "Traceback" not in server.said()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/health")


def test_what_was_asked_before_the_stop_is_answered(tmp_path):
    """One text is being read, three wait, there is room for six: after SIGTERM all four are answered; what came when
    there was no room was turned away."""
    slow = LiveServer("-m", "tests.serving.slow_server", str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(4) as pool, slow.client() as client:

        def ask(n):
            return httpx.post(f"{slow.url}/get_reward", json={"query": ["x" * (n + 1)]}, timeout=120)

        answers = [pool.submit(ask, 0)]
        while not (tmp_path / "reading").exists():
            time.sleep(0.01)
        answers += [pool.submit(ask, n) for n in range(1, 4)]
        while client.get("/health").json()["waiting"] < 3:
            time.sleep(0.01)
        no_room = client.post("/get_reward", json={"query": ["y"] * 4})
        assert no_room.status_code == 429 and int(no_room.headers["retry-after"]) >= 1
        slow.process.terminate()
        (tmp_path / "open").touch()
        found = [answer.result() for answer in answers]
    assert [answer.status_code for answer in found] == [200] * 4
    assert [answer.json()["rewards"] for answer in found] == [[1.0], [2.0], [3.0], [4.0]]
    assert slow.stop() == 0
