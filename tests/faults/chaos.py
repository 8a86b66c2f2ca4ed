"""Kill a training of two processes again and again, and hold its end against an undisturbed one: `make chaos`.

python tests/faults/chaos.py [--kills 30] [--minutes 10] [--seed 0]

Each round starts the same command and disturbs it: SIGKILL to one process at any time (the first compilation is hit as
well) or while it saves, SIGTERM to one process at any time or in an evaluation, SIGTERM or Ctrl-C to the launcher. At
the end the run goes to its last step. The weights must be bit-equal to those of one process with two devices, and every
line of metrics, those of evaluations too, must be there once and say the same; the same checkpoints must be kept (the
best one and the newest).
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import test_two_processes as two  # noqa: E402

STEPS, SAVE_EVERY, EVAL_EVERY = 360, 5, 20
SETTINGS = (f"--config.train.steps={STEPS}", f"--config.train.save_every={SAVE_EVERY}",
            f"--config.train.eval_every={EVAL_EVERY}", "--config.safety.max_crashes=0", *two.BEST)  # fmt: skip
WAYS = ("kill", "kill in a save", "term", "term in an evaluation", "launcher term", "launcher ctrl-c")
PATIENCE = 240
"""Seconds after which a job that does not end counts as hanging."""

HANGS = -1000


def disturb(run: Path, log, rng: random.Random, way: str) -> int:
    """One round: the exit code of the launcher, 0 when the run came to its end before it was disturbed."""
    steps, rank = max(two.steps_in(run), default=0), rng.randint(0, 1)
    # The processes agree on where to stop within seconds: with slow steps they are not at the end by then.
    fault = "" if way == "kill" else "slow@step1"
    if way == "kill in a save":
        fault = f"kill@save{(steps // SAVE_EVERY + rng.randint(1, 3)) * SAVE_EVERY}:{rank}"
    if way == "term in an evaluation":
        fault = f"term@eval{(steps // EVAL_EVERY + 1) * EVAL_EVERY}:{rank}"
    job = two.launch(run, *SETTINGS, log=log, fault=fault)
    try:
        if way in ("kill in a save", "term in an evaluation"):
            return job.wait(PATIENCE)
        early, target = rng.random() < 0.2, steps + rng.randint(1, 6)
        until = time.time() + rng.uniform(1, 8)
        while job.poll() is None:
            if time.time() > until if early else max(two.steps_in(run), default=0) >= target:
                break
            time.sleep(0.05)
        if way.startswith("launcher"):
            job.send_signal(signal.SIGINT if "ctrl" in way else signal.SIGTERM)
            return job.wait(PATIENCE)
        # Early it may not be there yet; not to hit it would leave hundreds of slow steps, which look like a hang.
        while job.poll() is None and rank not in (found := two.workers(job)):
            time.sleep(0.05)
        if job.poll() is None:
            os.kill(found[rank], signal.SIGKILL if way == "kill" else signal.SIGTERM)
        return job.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        for worker in two.workers(job).values():
            os.kill(worker, signal.SIGABRT)  # PYTHONFAULTHANDLER: each writes into the log where its threads stand
        time.sleep(2)
        return HANGS
    finally:
        two.end(job)


def main() -> int:
    """Rounds until the kills or four fifths of the minutes are used up, then the comparison; 0 when all is equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["PYTHONFAULTHANDLER"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore Ctrl-C, and theirs
    rng, started = random.Random(arguments.seed), time.time()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        run, alone = Path(folder) / "run", Path(folder) / "alone"
        two.undisturbed(alone, *SETTINGS)
        ways, hung = collections.Counter[str](), 0
        while ways.total() < arguments.kills and time.time() - started < 60 * arguments.minutes * 0.8:
            way = WAYS[ways.total() % len(WAYS)] if ways.total() < len(WAYS) else rng.choice(WAYS)
            code = disturb(run, log, rng, way)
            if code == 0:
                print("     it came to its end", flush=True)
                break
            hung += code == HANGS
            ways[way] += 1
            print(f"{ways.total():>3}  {way:<22} exit {code:>4}  steps {max(two.steps_in(run), default=0)}", flush=True)
            if code == HANGS:
                log.flush()
                print((Path(folder) / "log").read_text()[-12000:], flush=True)
        job = two.launch(run, *SETTINGS, log=log)
        code = job.wait()
        two.end(job)
        want, got = two.params_of(alone), two.params_of(run)
        equal = all((got[path] == want[path]).all() for path in want)
        whole = two.lines_in(run) == two.lines_in(alone) and two.steps_in(run) == list(range(1, STEPS + 1))
        kept = two.state.steps_of(run) == two.state.steps_of(alone)
        counts = ", ".join(f"{count} {way}" for way, count in sorted(ways.items()))
        print(f"{ways.total()} disturbances ({counts}) in {time.time() - started:.0f} s; {hung} did not end; last exit "
              f"{code}; weights bit-equal: {equal}; every line of metrics once and the same: {whole}; "
              f"same checkpoints kept: {kept}")  # fmt: skip
        if code or hung or not (equal and whole and kept):
            log.flush()
            print((Path(folder) / "log").read_text()[-4000:])
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
