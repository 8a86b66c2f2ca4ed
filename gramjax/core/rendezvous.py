"""Before JAX joins the processes of a job: who is there? JAX aborts without an exception when one does not come.

Process 0 listens at the coordinator's address, which JAX uses right afterwards, and every other process calls there
and says its number. When all have called, or the time is over, process 0 tells all what it found, and each goes on or
ends with one clear line. Nothing but these numbers is exchanged.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from gramjax.core.errors import GramjaxError, UserError

JOIN, HEARTBEAT = "GRAMJAX_JOIN_SECONDS", "GRAMJAX_HEARTBEAT_SECONDS"
DEFAULTS = {JOIN: 300, HEARTBEAT: 100}
"""Seconds that processes wait for each other at the start, and after which a silent one counts as dead."""

LONGEST = 4096
PATIENCE = 5.0
"""Seconds that a caller has to say its line."""

PAUSE = 0.2
ADDRESS = "JAX_COORDINATOR_ADDRESS or --distributed"


def limits(environment: Mapping[str, str] = os.environ) -> dict[str, int]:
    """The time limits of `jax.distributed.initialize`. Raises UserError naming the variable."""
    found = {}
    for name, default in DEFAULTS.items():
        text = environment.get(name) or str(default)
        if not text.isdigit() or int(text) < 1:
            raise UserError(f"{name}={text}: expected a number of seconds, at least 1")
        found[name] = int(text)
    return {"initialization_timeout": found[JOIN], "heartbeat_timeout_seconds": found[HEARTBEAT]}


def meet(address: str, number: int, count: int, seconds: float) -> None:
    """Come back when all processes of the job are there.

    Raises UserError in all of them when two have one number or another count, GramjaxError when some are missing.
    """
    name, _, port = address.rpartition(":")
    if not port.isdigit() or not 0 < int(port) < 2**16:
        raise UserError(f"the coordinator's address is {address!r}, expected HOST:PORT ({ADDRESS})")
    if number == 0:
        receive(address, int(port), count, seconds)
    else:
        call((name.strip("[]"), int(port)), address, number, count, seconds)


def receive(address: str, port: int, count: int, seconds: float) -> None:
    """What process 0 does."""
    until = time.monotonic() + seconds
    present: dict[int, tuple[str, socket.socket]] = {}
    problem: GramjaxError | None = None
    with listen(address, port) as server:
        while len(present) < count - 1 and problem is None:
            server.settimeout(max(until - time.monotonic(), 0.01))
            try:
                caller = server.accept()[0]
            except TimeoutError:
                problem = missing(present, count, seconds)
                break
            said = heard(caller, PAUSE if time.monotonic() > until else PATIENCE)
            if not isinstance(said.get("number"), int):
                caller.close()  # a probe, or somebody else's
                continue
            number, host = said["number"], str(said.get("host"))
            if said.get("count") != count:
                problem = UserError(f"process 0 was told of {count} processes, process {number} on {host} of "
                                    f"{said.get('count')}: start all with the same number")  # fmt: skip
            elif not 0 < number < count or (number in present and not gone(present[number][1])):
                first = socket.gethostname() if number == 0 else present.get(number, ("nobody",))[0]
                problem = UserError(f"two processes have the number {number} (on {first} and on {host}) of {count}: "
                                    "numbers go from 0 and each is given once")  # fmt: skip
            if problem is not None:
                present[-1] = host, caller
            else:
                present[number] = host, caller
        answer = {"problem": str(problem or ""), "user": isinstance(problem, UserError)}
        for _, caller in present.values():
            finish(caller, answer)
    if problem is not None:
        raise problem


def listen(address: str, port: int) -> socket.socket:
    """The socket of process 0. Raises UserError naming address and setting."""
    try:
        if socket.has_dualstack_ipv6():
            try:
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise UserError(f"process 0 cannot listen at {address}: {error.strerror or error}. Is another job there? Give "
                        f"another port ({ADDRESS})") from error  # fmt: skip


def missing(present: Mapping[int, tuple[str, Any]], count: int, seconds: float) -> GramjaxError:
    """The error that names who came and who did not."""
    here = {0: socket.gethostname(), **{number: host for number, (host, _) in sorted(present.items())}}
    absent = [str(number) for number in range(count) if number not in here]
    names = ", ".join(f"{number} on {host}" for number, host in here.items())
    return GramjaxError(
        f"{len(here)} of {count} processes came within {seconds:g} s ({JOIN}): {names}; missing: {', '.join(absent)}. "
        "Look at the logs of their hosts"
    )


def call(where: tuple[str, int], address: str, number: int, count: int, seconds: float) -> None:
    """What every other process does."""
    until, last = time.monotonic() + seconds, "no answer"
    hello = json.dumps({"number": number, "count": count, "host": socket.gethostname()}).encode() + b"\n"
    while (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection(where, timeout=min(left, PATIENCE)) as caller:
                caller.sendall(hello)
                answer = heard(caller, left + PATIENCE)
        except OSError as error:
            last = error.strerror or str(error)
        else:
            if "problem" in answer:
                if answer["problem"]:
                    raise (UserError if answer.get("user") else GramjaxError)(answer["problem"])
                return
            last = "whoever answers there is no process 0 of gramjax, or ended"
        time.sleep(PAUSE)
    raise GramjaxError(
        f"process {number} of {count} on {socket.gethostname()} did not reach process 0 at {address} within "
        f"{seconds:g} s ({last}): does process 0 run, is that its address ({ADDRESS}), and is the port open? {JOIN} is "
        "the limit"
    )


def heard(caller: socket.socket, seconds: float) -> dict[str, Any]:
    """The JSON object of one line; empty when none comes."""
    caller.settimeout(max(seconds, 0.01))
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < LONGEST:
            part = caller.recv(LONGEST)
            if not part:
                break
            data += part
        found = json.loads(data)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def gone(caller: socket.socket) -> bool:
    """Whether a process that had called is not there any more."""
    caller.setblocking(False)
    try:
        return not caller.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def finish(caller: socket.socket, answer: Mapping[str, Any]) -> None:
    """Tell a caller, and let it hang up first, so that the port is free for JAX."""
    try:
        caller.settimeout(PATIENCE)
        caller.sendall(json.dumps(answer).encode() + b"\n")
        caller.recv(1)
    except OSError:
        pass
    finally:
        caller.close()
