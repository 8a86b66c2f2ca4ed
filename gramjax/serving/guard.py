"""What stands before the routes: who may ask, how large a body may be, and that it is proper JSON.

Bodies are read here once, with a limit while they come in, so that neither a wrong length nor a missing one can fill
the memory; what is not strict JSON (UTF-8, no NaN, no doubled keys, no lone surrogates, little nesting) ends here.
"""

import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gramjax.core.flags import MOST_NESTING, depth
from gramjax.data import records

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no token."""

TYPES = {401: "authentication_error", 404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error",
         500: "internal_error", 503: "unavailable"}  # fmt: skip


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, param: str | None = None, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def body(self) -> dict[str, Any]:
        """The answer."""
        facts = {"message": self.message, "type": TYPES.get(self.status, "invalid_request_error"), "code": self.status}
        return {"error": {**facts, "param": self.param}}


class Guard:
    """The application behind these checks."""

    def __init__(self, app: App, token: str, max_bytes: int) -> None:
        self.app, self.token, self.max_bytes = app, token.encode(), max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self.check_token(scope)
            if scope["method"] == "POST":
                receive = await self.checked(scope, receive)
        except Refused as refused:
            await answer(send, refused)
            return
        await self.app(scope, receive, send)

    def check_token(self, scope: Scope) -> None:
        """Raise Refused unless the request brings the token; the comparison takes the same time for every wrong one."""
        if not self.token or scope["path"] in OPEN:
            return
        scheme, _, given = header(scope, b"authorization").partition(b" ")
        if not (hmac.compare_digest(given.strip(), self.token) and scheme.lower() == b"bearer"):
            raise Refused(401, "a bearer token is needed: Authorization: Bearer TOKEN", WWW_Authenticate="Bearer")

    async def checked(self, scope: Scope, receive: Receive) -> Receive:
        """A `receive` that gives the body of the request, which is proper JSON. Raises Refused."""
        kind = header(scope, b"content-type").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refused(415, f"the body must be application/json, not {kind.decode('latin-1') or 'of no type'}")
        if header(scope, b"content-encoding").strip().lower() not in (b"", b"identity"):
            raise Refused(415, "compressed bodies are not read")
        length = header(scope, b"content-length")
        if length.isdigit() and int(length[:20]) > self.max_bytes:
            raise self.too_large()
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused(400, "the request ended before its body did")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_bytes:
                raise self.too_large()
        check_json(bytes(body))
        given = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replay

    def too_large(self) -> Refused:
        """The answer to a body over the limit; the rest of it is not read."""
        return Refused(413, f"the body is larger than {self.max_bytes:,} bytes (config.serve.max_bytes)",
                       Connection="close")  # fmt: skip


def check_json(body: bytes) -> None:
    """Raise Refused for what is no strict JSON object."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Refused(400, f"the body is no UTF-8: byte 0x{body[error.start]:02x} at byte {error.start}") from None
    try:
        value = records.parse(text)
    except records.BadRecord as bad:
        raise Refused(400, f"the body is no strict JSON: {bad.detail}") from None
    if depth(value) > MOST_NESTING:
        raise Refused(400, f"the body is nested deeper than {MOST_NESTING}")
    if not isinstance(value, dict):
        raise Refused(422, f"the body must be a JSON object, not {type(value).__name__}")


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of that name, or nothing."""
    return next((value for key, value in scope["headers"] if key == name), b"")


async def answer(send: Send, refused: Refused) -> None:
    """Send an error."""
    body = json.dumps(refused.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
