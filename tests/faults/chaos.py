"""Kill a training of two processes again and again, and hold its end against an undisturbed one: `make chaos`.

python tests/faults/chaos.py [--kills 30] [--minutes 10] [--seed 0]

Each round starts the same command, waits until it has made some steps (or not: the first compile is hit as well), and
sends SIGKILL to one process, SIGTERM to one process, or SIGTERM to the launcher. At the end the run goes to its last
step. The weights must be bit-equal to those of one process with two devices, and no step may be missing or doubled.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import test_two_processes as two  # noqa: E402


def disturb(run: Path, log, rng: random.Random, name: str) -> tuple[str, int]:
    """One round: what was done, and the exit code of the launcher."""
    job = two.launch(run, *SETTINGS, log=log)
    try:
        target = max(two.steps_in(run), default=0) + rng.randint(1, 25)
        hit_early = rng.random() < 0.2
        deadline = time.time() + rng.uniform(1, 6)
        while job.poll() is None:
            if hit_early and time.time() > deadline:
                break
            if not hit_early and max(two.steps_in(run), default=0) >= target:
                break
            time.sleep(0.05)
        found = two.workers(job)
        if job.poll() is not None or not found:
            return "ended by itself", job.wait()
        if name == "launcher":
            job.send_signal(signal.SIGTERM)
        else:
            os.kill(found[rng.choice(sorted(found))], signal.SIGKILL if name == "kill" else signal.SIGTERM)
        return name + (" early" if hit_early else ""), job.wait(120)
    finally:
        two.end(job)


SETTINGS = ("--config.train.steps=400", "--config.train.save_every=5", "--config.safety.max_crashes=0")


def main() -> int:
    """Rounds until the kills or the minutes are used up, then the comparison; 0 when all is equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, started = random.Random(arguments.seed), time.time()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        run, alone = Path(folder) / "run", Path(folder) / "alone"
        two.undisturbed(alone, *SETTINGS)
        done = 0
        while done < arguments.kills and time.time() - started < 60 * arguments.minutes * 0.8:
            what, code = disturb(run, log, rng, rng.choice(["kill", "kill", "term", "launcher"]))
            done += 1
            print(f"{done:>3}  {what:<16} exit {code:>4}  steps {max(two.steps_in(run), default=0)}", flush=True)
            if what == "ended by itself":
                break
        job = two.launch(run, *SETTINGS, log=log)
        code = job.wait()
        two.end(job)
        steps = two.steps_in(run)
        want, got = two.params_of(alone), two.params_of(run)
        equal = all((got[path] == want[path]).all() for path in want)
        whole = steps == list(range(1, 401))
        print(f"{done} disturbances in {time.time() - started:.0f} s; last exit {code}; weights bit-equal: {equal}; "
              f"every step once: {whole}")  # fmt: skip
        if code or not (equal and whole):
            print((Path(folder) / "log").read_text()[-4000:])
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
