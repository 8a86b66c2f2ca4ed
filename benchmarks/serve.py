"""A reward server under load: right scores for a minute, and how much batching gains over one request at a time.

    python benchmarks/serve.py [--seconds 60] [--clients 64] [--json benchmarks/results/serve.json]
    python benchmarks/serve.py --repeat 12 --seconds 15 --json benchmarks/results/serve_long.json

A Bradley-Terry model (4 layers of width 128, random head, trained for two steps) on generated pairs. Every answer under
load is compared with `gramjax score`; the first error or wrong score ends it. `one` is a single client that waits for
each answer; `many` are clients that do the same at once, each with one text per request. Loopback only.

A text has 14 tokens; with `--repeat` its prompt stands that often, and the model takes most of the time: a CPU computes
a text no faster among others, so there batching saves only what a request costs besides.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measure

CLOSE = 2e-5


def prepare(folder: Path, repeat: int) -> dict[tuple[str, str], float]:
    """A model, and the scores of some texts by `gramjax score`."""
    from gramjax import cli
    from gramjax.core import folder as folders
    from gramjax.core.config import defaults
    from gramjax.data.recipes import word_translation as words

    config = defaults("bradley_terry")
    config.tokenizer.path = "recipe:word_translation"
    config.data.train = ("recipe:word_translation:train:100",)
    config.data.max_length = words.MAX_LENGTH + 15 * (repeat - 1)
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 128, 352, 4
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 4, 4, 32
    config.train.steps, config.train.batch_size, config.log.tensorboard = 2, 8, False
    folders.write_json(folder / "config.json", folders.as_dict(config))
    cli.main(["train", f"--config={folder / 'config.json'}", f"--workdir={folder / 'run'}"])
    rows = [
        {"id": f"{row['id']}-{name}", "prompt": " ".join([row["prompt"]] * repeat), "completion": row[name]}
        for row in words.rows("valid", 100) for name in ("chosen", "rejected")
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli.main(["score", "--config=score", f"--config.model.path={folder / 'run'}", f"--workdir={folder / 'scored'}",
              f"--config.data.path={folder / 'rows.jsonl'}"])  # fmt: skip
    lines = (folder / "scored" / "rows.jsonl").read_text().splitlines()
    return {(row["prompt"], row["completion"]): row["score"] for row in map(json.loads, lines)}


class Client:
    """A connection that is kept open; it does as little as it can, for it shares the machine with the server."""

    def __init__(self, url: str) -> None:
        self.host, port = url.removeprefix("http://").split(":")
        self.port = int(port)

    async def __aenter__(self) -> "Client":
        self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer."""
        head = (f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")  # fmt: skip
        self.writer.write(head.encode() + body)
        lines = (await self.reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        return int(lines[0].split()[1]), await self.reader.readexactly(length)


async def load(url: str, scores: dict[tuple[str, str], float], clients: int, seconds: float) -> dict[str, Any]:
    """`clients` at once, each waiting for its answer, for some seconds."""
    asked = [(json.dumps({"query": [p + a], "prompts": [p]}).encode(), score) for (p, a), score in scores.items()]
    until = time.monotonic() + seconds
    latencies: list[float] = []

    async def work(seed: int) -> float:
        draw, worst = random.Random(seed), 0.0
        async with Client(url) as client:
            while time.monotonic() < until:
                body, score = draw.choice(asked)
                begin = time.monotonic()
                status, found = await client.post("/get_reward", body)
                latencies.append(time.monotonic() - begin)
                if status != 200:
                    raise SystemExit(f"benchmark: {status} {found.decode()}")
                worst = max(worst, abs(json.loads(found)["rewards"][0] - score))
                if worst > CLOSE:
                    raise SystemExit(f"benchmark: a score is off by {worst}")
        return worst

    worst = max(await asyncio.gather(*(work(seed) for seed in range(clients))))
    latencies.sort()
    return {
        "clients": clients, "seconds": seconds, "requests": len(latencies), "errors": 0,
        "requests_per_second": round(len(latencies) / seconds, 1), "worst_difference": worst,
        "latency_ms": {f"p{p}": round(1000 * latencies[len(latencies) * p // 100], 1) for p in (50, 95, 99)},
    }  # fmt: skip


def main() -> None:
    """Start the server, measure one client and many in turn, then the minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--json", default="")
    given = parser.parse_args()
    here = measure.machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scores = prepare(folder, given.repeat)
        command = [sys.executable, "-m", "gramjax", "serve", "--config=serve", f"--config.model.path={folder / 'run'}",
                   "--config.serve.port=0", "--config.serve.batch_size=64"]  # fmt: skip
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[-1]
            rounds = []
            for _ in range(3):
                one = asyncio.run(load(url, scores, 1, 4))
                rounds.append({"one": one, "many": asyncio.run(load(url, scores, given.clients, 4))})
            long = asyncio.run(load(url, scores, given.clients, given.seconds))
        finally:
            server.terminate()
            code = server.wait()
    ratios = sorted(r["many"]["requests_per_second"] / r["one"]["requests_per_second"] for r in rounds)
    measure.write(given.json, {
        "command": " ".join(["python", "benchmarks/serve.py", *sys.argv[1:]]), **here,
        "load_after": measure.machine()["load_before"], "many_over_one": round(ratios[1], 2), "rounds": rounds,
        "sustained": long, "exit_code_after_sigterm": code,
    })  # fmt: skip


if __name__ == "__main__":
    main()
