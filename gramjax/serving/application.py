"""The routes: bodies in, bodies out. Everything else is in `service` (what is asked) and `guard` (who may ask what)."""

import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

import gramjax
from gramjax.core.statistics import sigmoid
from gramjax.data.rows import Text
from gramjax.serving import bodies, service
from gramjax.serving.guard import Guard, Refused
from gramjax.serving.service import Item, Service
from gramjax.serving.written import WrittenService

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.Error, "description": text}
    for status, text in {
        400: "The body or a text in it cannot be used", 401: "No or a wrong token", 404: "No such model",
        413: "Too many bytes or texts", 415: "Not JSON", 422: "Not the fields of this route",
        429: "Too much is waiting", 500: "The model gave no number", 503: "The server stops",
    }.items()
}  # fmt: skip
FEW_ERRORS: dict[int | str, dict[str, Any]] = {401: ERRORS[401]}


def make(found: Service | WrittenService, token: str = "", max_bytes: int = 1 << 20) -> Guard:
    """The application of a service, behind its guard."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        found.batcher.close()

    app = FastAPI(title="gramjax", version=gramjax.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
                  description=f"The reward model {found.name}.")  # fmt: skip
    started = int(time.time())

    @app.get("/health", response_model=bodies.Health)
    async def health() -> JSONResponse:
        """Whether the server answers, and what waits."""
        return JSONResponse({"status": "ok", "model": found.name, "kind": found.kind, "waiting": found.batcher.waiting,
                             "batches": found.batcher.batches, "programs": found.programs})  # fmt: skip

    @app.get("/v1/models", response_model=bodies.Models, responses=FEW_ERRORS)
    async def models() -> JSONResponse:
        """The model."""
        card = {"id": found.name, "object": "model", "created": started, "owned_by": "gramjax",
                "kind": found.kind, "max_length": found.max_length}  # fmt: skip
        return JSONResponse({"object": "list", "data": [card]})

    @app.post("/classify", response_model=bodies.Classified, responses=ERRORS)
    @app.post("/v1/classify", response_model=bodies.Classified, responses=ERRORS)
    async def classify(body: bodies.Classify) -> JSONResponse:
        """Scores in the form of vLLM and SGLang: `probs` holds the sigmoid of the score, or with `use_activation` false
        the score itself. Of a judge it is the probability that the answer beats the reference either way."""
        found.check_name(body.model)
        given = [one for one in (body.input, body.text, body.messages) if one is not None]
        if len(given) != 1:
            raise Refused(422, "give 'input' (or 'text' or 'messages', only one of them)", "input")
        if not body.add_special_tokens and not found.special_tokens:
            raise Refused(400, "add_special_tokens must be true: see config.serve.special_tokens", "add_special_tokens")
        items = with_references(items_of(given[0]), body.reference)
        found.check_count(len(items), "input")
        scored = await found.score(items)
        activate = body.activated and not found.judges
        probs = [float(sigmoid(score)) if activate else score for score in scored.scores]
        data = [{"index": n, "label": "LABEL_0", "probs": [p], "num_classes": 1} for n, p in enumerate(probs)]
        used = usage(scored.num_tokens, scored.drawn_tokens)
        return JSONResponse({**head("classify", "list", found.name), "data": data, "usage": used})

    @app.post("/get_reward", response_model=bodies.Rewards, responses=ERRORS)
    async def get_reward(body: bodies.GetReward) -> JSONResponse:
        """Rewards in the form of OpenRLHF."""
        queries = [body.query] if isinstance(body.query, str) else body.query
        found.check_count(len(queries), "query")
        items = [Item(None, query) for query in queries]
        if body.prompts is not None and not found.special_tokens:
            items = split(queries, body.prompts)
        scored = await found.score(with_references(items, body.reference))
        return JSONResponse({"rewards": scored.scores, "scores": scored.scores, "extra_logs": scored.logs})

    @app.post("/v1/score/evaluation", response_model=bodies.Evaluated, responses=ERRORS)
    async def score_evaluation(body: bodies.ScoreEvaluation) -> JSONResponse:
        """Scores in the form of LLaMA-Factory."""
        found.check_name(None if body.model == bodies.ANY_MODEL else body.model)
        found.check_count(len(body.messages), "messages")
        scored = await found.score([Item(None, text) for text in body.messages], body.max_length or 0)
        made = {"id": f"scoreval-{uuid.uuid4().hex}", "object": "score.evaluation", "model": found.name}
        return JSONResponse({**made, "scores": scored.scores})

    @app.post("/v1/compare", response_model=bodies.Compared, responses=ERRORS)
    async def compare(body: bodies.Compare) -> JSONResponse:
        """Which response is better, or the order of several, best first."""
        found.check_name(body.model)
        found.check_count(len(body.responses), "responses")
        if body.rationale and not found.writes:
            raise Refused(400, "rationale: this model reads verdicts, it writes no rationales (only a judge of GRAM-R2 "
                               "does)", "rationale")  # fmt: skip
        responses = [plain(response) for response in body.responses]
        if len({isinstance(text, str) for text in responses}) > 1:
            raise Refused(400, "the responses must all be texts or all be messages", "responses")
        said = await found.compare(plain(body.prompt), responses, body.swap, body.method, body.top)
        pairs = [service.judged(*pair, body.rationale) for pair in said.pairs]
        two = pairs[0] if len(responses) == 2 else {"p_a": None, "verdict": None}
        return JSONResponse({
            **head("compare", "comparison", found.name), "kind": found.kind, "method": said.method,
            "order": said.order, "scores": said.scores, "pairs": pairs, "p_a": two["p_a"], "verdict": two["verdict"],
            "judge_calls": said.judge_calls, "usage": usage(said.num_tokens, said.drawn_tokens),
        })  # fmt: skip

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse(Refused(422, f"{place or 'body'}: {first['msg']}", place or None).body(), 422)

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        text = {404: "there is no such route; /openapi.json lists them", 405: "not with this method"}
        made = Refused(error.status_code, text.get(error.status_code, str(error.detail)))
        return JSONResponse(made.body(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(Refused(500, "the server failed; its log says why").body(), 500)

    return Guard(app, token, max_bytes)


def head(name: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that answers begin with."""
    return {"id": f"{name}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(tokens: int, drawn: int = 0) -> dict[str, int]:
    """Tokens that were read and drawn."""
    return {"prompt_tokens": tokens, "total_tokens": tokens + drawn, "completion_tokens": drawn}


def plain(text: Any) -> Text:
    """A text, or messages as dicts."""
    return text if isinstance(text, str) else [message.model_dump() for message in text]


def items_of(given: Any) -> list[Item]:
    """What is to be scored, one or several."""
    if isinstance(given, bodies.Pair):
        return [Item(plain(given.prompt), plain(given.response))]
    if isinstance(given, str) or isinstance(given[0], bodies.Message):
        return [Item(None, plain(given))]
    return [item for one in given for item in items_of(one)]


def with_references(items: Sequence[Item], given: Any) -> list[Item]:
    """The items with the references of the request: one for all, or one each. Raises Refused for another number."""
    if given is None:
        return list(items)
    one = isinstance(given, str) or isinstance(given[0], bodies.Message)
    texts = [plain(given)] * len(items) if one else [plain(text) for text in given]
    if len(texts) != len(items):
        raise Refused(400, f"{len(texts)} references for {len(items)} texts", "reference")
    return [Item(item.prompt, item.answer, text) for item, text in zip(items, texts, strict=True)]


def split(queries: Sequence[str], prompts: Sequence[str]) -> list[Item]:
    """Queries taken apart into prompt and answer. Raises Refused for a query that does not begin with its prompt."""
    if len(prompts) != len(queries):
        raise Refused(400, f"{len(prompts)} prompts for {len(queries)} queries", "prompts")
    for number, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
        if not query.startswith(prompt):
            raise Refused(400, f"query {number} does not begin with its prompt", "prompts")
    return [Item(prompt, query[len(prompt) :]) for query, prompt in zip(queries, prompts, strict=True)]
