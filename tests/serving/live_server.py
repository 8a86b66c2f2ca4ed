"""A real `gramjax serve` in a process of its own, and a client for it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx


class LiveServer:
    """Started when it is made; `url` is where it answers."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, *command], stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("serving "):
            self.process.wait()
            raise AssertionError(f"no server: {line}{self.said()}")
        self.url = line.split()[-1]

    def said(self) -> str:
        """Its standard error so far."""
        self.errors.seek(0)
        return self.errors.read()

    def client(self, token: str = "") -> httpx.Client:
        """A client that keeps its connections."""
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def stop(self) -> int:
        """Ask it to stop, and wait for the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait()


def in_process(model: Path, *settings: str, token: str = ""):
    """(client, service) of the same application without a process and a socket; the client is a context manager."""
    from starlette.testclient import TestClient

    from gramjax.core import config as configs
    from gramjax.core import flags
    from gramjax.jobs import serve
    from gramjax.serving import application

    arguments = flags.parse(["--config=serve", f"--config.model.path={model}", *settings], "serve", False)
    section = configs.section(arguments.config.serve, configs.ServeSection, "serve")
    service = serve.open_service(arguments.config, section, arguments.overrides)
    return TestClient(application.make(service, token, section.max_bytes)), service
