"""The server process: a socket that is taken before anything slow happens, and a stop that leaves nobody unanswered."""

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gramjax.core.errors import UserError

SWITCH_SECONDS = 0.0005
"""How long one thread keeps the interpreter when another wants it."""

TOKEN = "GRAMJAX_SERVE_TOKEN"
"""The environment variable that may hold the token; a command line can be read by everybody on the machine."""


def read_token(token_file: str) -> str:
    """The token that requests must bring, or "". Raises UserError for a file that holds none."""
    if not token_file:
        return os.environ.get(TOKEN, "").strip()
    try:
        lines = Path(token_file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config.serve.token_file: {token_file} cannot be read ({error})") from None
    if not lines or not lines[0].strip():
        raise UserError(f"config.serve.token_file: the first line of {token_file} is empty")
    return lines[0].strip()


def check_reach(host: str, token: str, allowed: bool) -> None:
    """Raise UserError for an address that others can reach when nobody is asked for a token."""
    if token or allowed or is_loopback(host):
        return
    raise UserError(f"config.serve.host={host!r} can be reached by others, and no token is asked for: set {TOKEN} or "
                    "config.serve.token_file, or --config.serve.open=True if everybody may ask")  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket with that address, which nobody can connect to yet. Raises UserError if it is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as error:
        raise UserError(f"config.serve: cannot listen on {host}:{port} ({error.strerror or error})") from None
    made.set_inheritable(True)
    return made


def url(bound: socket.socket) -> str:
    """Where a socket is reached."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: Any, bound: socket.socket, stop_seconds: float, ready: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT; then nothing new is taken, and what is under way is answered."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, backlog=2048,
                            timeout_graceful_shutdown=max(1, round(stop_seconds)))  # fmt: skip
    # The device's thread asks for the interpreter after every batch; by default it would wait 5 ms for it each time.
    sys.setswitchinterval(SWITCH_SECONDS)
    # The server hands a signal that stopped it on to the handler that was there before: with these it ends well.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        Server(config).run(sockets=[bound])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
