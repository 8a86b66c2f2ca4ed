"""Rewards from a server: the forms that gramjax serve and OpenRLHF answer, failures that are tried again or told."""

import contextlib
import http.server
import json
import threading

import pytest

from gramjax.core.errors import UserError
from gramjax.core.reinforcement import RewardSection
from gramjax.generation.rewards import Resources, Rewards
from gramjax.rewards import http as plugin

RESOURCES = Resources(None, (0,), None, 0)
ROW = {"id": "1", "prompt": "In: a\n", "best": "Out: x"}
CHAT = {"id": "1", "prompt": [{"role": "user", "content": "In: a"}]}
ANSWERS = ["Out: x", "Out: y\n"]


@contextlib.contextmanager
def server(answer):
    """A server on a free port; `answer(path, body, headers)` gives status and body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, said = answer(self.path, body, dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *arguments):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{made.server_port}"
    finally:
        made.shutdown()
        made.server_close()


def rewards_of(url, row=ROW, greedy=None, answers=ANSWERS, **settings):
    """The rewards through the runner, and the error of the call."""
    settings = {"url": url, **settings}
    rewards = Rewards.open({"http": (plugin, settings)}, RewardSection(max_failures=1.0), RESOURCES)
    assert rewards.greedy == (settings.get("reference") == "greedy")
    calls = rewards.submit(row, answers, [[1], [2]], 0, greedy)
    return rewards.result(calls)[:, 0].tolist(), calls[0].error


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    waited = []
    monkeypatch.setattr(plugin.time, "sleep", waited.append)
    return waited


def test_the_form_of_openrlhf():
    seen = []

    def answer(path, body, headers):
        seen.append((path, json.loads(body), headers.get("Authorization")))
        return 200, json.dumps({"rewards": [0.5, None], "scores": [0, 0], "extra_logs": {}}).encode()

    with server(answer) as url:
        (first, second), error = rewards_of(f"{url}/get_reward")
    assert first == 0.5 and second != second and not error, "null: not judged"
    assert seen == [("/get_reward", {"query": ["In: a\nOut: x", "In: a\nOut: y\n"], "prompts": ["In: a\n"] * 2}, None)]


def test_messages_keep_their_roles():
    seen = []

    def answer(path, body, headers):
        seen.append(json.loads(body))
        return 200, json.dumps({"data": [{"index": 1, "probs": [2.0]}, {"index": 0, "probs": [-1.0]}]}).encode()

    with server(answer) as url:
        assert rewards_of(url, CHAT, form="classify") == ([-1.0, 2.0], "")
    replies = [[{"role": "assistant", "content": text}] for text in ANSWERS]
    pairs = [{"prompt": CHAT["prompt"], "response": reply} for reply in replies]
    assert seen == [{"input": pairs, "use_activation": False}]


def test_the_model_behind_gramjax_serve(tiny_scalar, tiny_judge, monkeypatch):
    """One score whichever way: either route, with a token; a judge with a reference."""
    pytest.importorskip("fastapi", reason="needs the extra serve")
    from tests.serving.live_server import in_process

    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    judged = [(tiny_judge, "best", None), (tiny_judge, "greedy", "Out: x")]
    for model, reference, greedy in [(tiny_scalar, "", None), *judged]:
        client, service = in_process(model, token="secret")

        def answer(path, body, headers, client=client):
            kept = {name: headers[name] for name in ("Content-Type", "Authorization") if name in headers}
            said = client.post(path, content=body, headers=kept)
            return said.status_code, said.content

        with client, server(answer) as url:
            settings = {"token": "JUDGE_TOKEN", "reference": reference, "greedy": greedy}
            one, error = rewards_of(f"{url}/get_reward", **settings)
            two, _ = rewards_of(f"{url}/v1/classify", form="classify", **settings)
            assert not error and one == pytest.approx(two, abs=1e-5)
            if reference:
                assert one[0] == pytest.approx(0.5, abs=1e-5) and one[1] != one[0], "no better than itself"
            else:
                values = [r.value for r in service.model.rewards([(ROW["prompt"], text) for text in ANSWERS])]
                assert one == pytest.approx(values, abs=1e-5) and abs(one[0] - one[1]) > 1e-3
            _, error = rewards_of(f"{url}/get_reward", **{**settings, "token": ""})
            assert "answered 401" in error


def test_what_passes_is_tried_again_and_what_does_not_is_told(no_waiting):
    said = iter([(503, b"starting"), (429, b"busy"), (200, b'{"rewards": [1, 2]}')])
    with server(lambda *_: next(said)) as url:
        assert rewards_of(url, retries=2) == ([1, 2], "")
    assert no_waiting == [0.2, 0.4]
    said = iter([(500, b"broken"), (500, b"broken"), (200, b'{"rewards": [1, 2]}')])
    with server(lambda *_: next(said)) as url:
        found, error = rewards_of(url, retries=1)
    assert all(value != value for value in found) and "after 2 attempts: answered 500: broken" in error
    asked = []
    with server(lambda *given: asked.append(given) or (400, b"no such field")) as url:
        assert "answered 400: no such field" in rewards_of(url, retries=5)[1] and len(asked) == 1
    assert "after 1 attempts: [Errno" in rewards_of(url, retries=0)[1], "nobody listens there any more"


@pytest.mark.parametrize("said,error", [
    (b"<html>", "JSONDecodeError"), (b"{}", "KeyError: 'rewards'"), (b'{"rewards": [1]}', "returned 1 rewards for 2"),
    (b'{"rewards": [1, "x"]}', "reward 1 is 'x'"), (b'{"rewards": [1, NaN]}', "reward 1 is nan"),
])  # fmt: skip
def test_nonsense_is_no_reward(said, error):
    with server(lambda *_: (200, said)) as url:
        found, told = rewards_of(url)
    assert error in told and all(value != value for value in found)


def test_a_server_that_hangs():
    release = threading.Event()
    with server(lambda *_: release.wait() and (200, b"{}")) as url:
        assert "after 2 attempts: timed out" in rewards_of(url, seconds=0.2, retries=1)[1]
        release.set()


def test_settings(monkeypatch):
    monkeypatch.delenv("NO_TOKEN", raising=False)
    for settings, message in (
        ({}, "config.rewards.http.url is ''; give http://HOST:PORT/ROUTE"), ({"url": "file:///etc"}, "url is 'file"),
        ({"url": "http://x", "token": "NO_TOKEN"}, "names the variable NO_TOKEN, which is not set"),
        ({"url": "http://x", "form": "json"}, "config.rewards.http.form='json'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            plugin.open(plugin.Config(**settings), RESOURCES)
    assert "set config.rewards.http.form=classify" in rewards_of("http://127.0.0.1:1", CHAT)[1]
    assert "no column 'gold'" in rewards_of("http://127.0.0.1:1", reference="gold")[1]
