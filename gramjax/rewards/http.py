"""Rewards from a server: `gramjax serve`, or any that answers `/get_reward` (OpenRLHF) or `/v1/classify` (vLLM)."""

import dataclasses
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from gramjax.core.checks import one_of
from gramjax.core.errors import UserError

FORMS = ("get_reward", "classify")
GREEDY = "greedy"


@dataclasses.dataclass(frozen=True)
class Config:
    """Where the server is and what it is asked."""

    weight: float = 1.0
    """Factor of this reward in the sum."""
    url: str = ""
    """Address of the route, such as `http://127.0.0.1:8000/get_reward`."""
    form: str = "get_reward"
    """`get_reward`: prompt and answer as one text; `classify`: apart, so that messages keep their roles."""
    reference: str = ""
    """For a judge of pairs behind the server: what it compares with, `greedy` (the policy's own greedy answer) or a
    column of the rows; empty: nothing."""
    token: str = ""
    """Name of the environment variable with the bearer token; empty: none."""
    seconds: float = 30.0
    """Longest wait for one answer."""
    retries: int = 2
    """Further attempts after a failed one (a refused connection, 429 or 5xx)."""


def open(config: Config, resources: Any) -> str:
    """The bearer token. Raises UserError for an address that is none, or a variable that is not set."""
    one_of(config, "rewards.http", form=FORMS)
    if not config.url.startswith(("http://", "https://")):
        raise UserError(f"config.rewards.http.url is {config.url!r}; give http://HOST:PORT/ROUTE")
    if config.token and config.token not in os.environ:
        raise UserError(f"config.rewards.http.token names the variable {config.token}, which is not set")
    return os.environ.get(config.token, "") if config.token else ""


def needs_greedy(config: Config, opened: str) -> bool:
    """Whether the policy's greedy answer is asked for, as the column `greedy`."""
    return config.reference == GREEDY


def score(
    prompts: Sequence[Any], completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], *, config: Config,
    opened: str = "", **columns: Any,
) -> list[float | None]:  # fmt: skip
    """The rewards of the completions of one prompt, asked for together."""
    body: dict[str, Any]
    if config.reference and config.reference not in columns:
        raise ValueError(f"the rows have no column {config.reference!r} (config.rewards.http.reference)")
    against = {"reference": columns[config.reference]} if config.reference else {}
    if config.form == "get_reward":
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError("the prompts are messages: set config.rewards.http.form=classify")
        queries = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        body = {"query": queries, "prompts": list(prompts), **against}
    else:
        pairs = [{"prompt": prompt, "response": answer} for prompt, answer in zip(prompts, completions, strict=True)]
        body = {"input": pairs, "use_activation": False, **against}
    answer = ask(config, body, opened)
    if config.form == "get_reward":
        return list(answer["rewards"])
    return [entry["probs"][0] for entry in sorted(answer["data"], key=lambda entry: entry["index"])]


def ask(config: Config, body: dict[str, Any], token: str) -> dict[str, Any]:
    """The server's answer. Raises RuntimeError with what the server said when every attempt failed."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(config.url, json.dumps(body).encode(), headers)
    for attempt in range(config.retries + 1):
        try:
            with urllib.request.urlopen(request, timeout=config.seconds) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")[:200]
            if error.code != 429 and error.code < 500:
                raise RuntimeError(f"{config.url} answered {error.code}: {said}") from None
            last = f"answered {error.code}: {said}"
        except (urllib.error.URLError, OSError, http.client.HTTPException) as error:
            last = str(getattr(error, "reason", error)) or type(error).__name__
        if attempt < config.retries:
            time.sleep(min(0.2 * 2**attempt, 5.0))
    raise RuntimeError(f"{config.url} after {config.retries + 1} attempts: {last}")
