"""What a checkpoint costs: how long a save keeps a training from its next step, and what checksums and manifest add.

    python benchmarks/checkpoint_cost.py [--mib 1024] [--rounds 6] [--json benchmarks/results/checkpoint_cost.json]

One process, the sides in turn, each saving the same state (random float32, so that it does not compress) into a folder
of its own, which keeps three steps, as a training does:

- `asynchronous`: `Checkpoints.save`; `blocked` is the time until it returns, `whole` until the step is committed.
- `synchronous`: the same, and waiting for the commit: the time that a training without background saves would lose.
- `plain`: Orbax alone, without manifest, checksums and our retention, to see what those add.

Before every save the state is another one, and nothing of the save before is under way or waits to be written. The
order of the sides changes from round to round; the first round is left out. `integrity` is the time of checksums and
manifest by themselves, which is part of `blocked`; `verification` that of reading a step back, which happens in the
background, once for every three saves.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import measure


def make_state(mib: int) -> dict[str, Any]:
    """Leaves of 32 MiB, like the matrices of a model of some hundred million parameters with its moments."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), max(mib // 32, 1))
    leaves = {f"{number:03d}": jax.random.normal(key, (2048, 4096)) for number, key in enumerate(keys)}
    return {"params": {"layers": leaves}, "step": jnp.int32(0)}


class Ours:
    """A run folder as a training writes it."""

    def __init__(self, folder: Path) -> None:
        from gramjax.checkpoint.state import Checkpoints

        self.saved = Checkpoints(folder, keep=3, log=print)

    def save(self, step: int, state: Any) -> None:
        self.saved.save(step, state, {"source": {"step": step}, "num_tokens": 0}, {"model": {}})

    def wait(self) -> None:
        self.saved.wait()

    def settle(self) -> None:
        """What goes on in the background is over, as it is when the next save comes minutes later."""
        self.saved.wait()
        if self.saved._reader is not None:
            self.saved._reader.join()


class Plain:
    """Orbax by itself, with the same rule of what counts as committed; old steps are deleted between saves."""

    def __init__(self, folder: Path) -> None:
        import orbax.checkpoint as ocp

        mode = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
        options = ocp.CheckpointManagerOptions(max_to_keep=None, atomicity_options=mode, create=True)
        self.folder, self.manager = folder, ocp.CheckpointManager(folder.absolute(), options=options)

    def save(self, step: int, state: Any) -> None:
        import orbax.checkpoint as ocp

        self.manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)))

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def settle(self) -> None:
        for old in sorted(self.manager.all_steps())[:-3]:
            shutil.rmtree(self.folder / str(old))
        self.manager.reload()


def measured(mib: int, rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """Seconds of every round, by side and part."""
    import jax

    from gramjax.checkpoint import manifest
    from gramjax.checkpoint import state as states

    state = make_state(mib)
    move = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    sides = {"asynchronous": Ours(folder / "a"), "synchronous": Ours(folder / "s"), "plain": Plain(folder / "p")}
    out: dict[str, dict[str, list[float]]] = {name: {"blocked": [], "whole": []} for name in sides}
    out |= {"integrity": {"blocked": []}, "verification": {"background": []}}
    for number in range(rounds + 1):
        order = [list(sides)[(number + place) % len(sides)] for place in range(len(sides))]
        for name in order:
            side = sides[name]
            state = jax.block_until_ready(move(state))
            os.sync()  # no side pays for what another one wrote
            begin = time.perf_counter()
            side.save(number + 1, state)
            if name == "synchronous":
                side.wait()
            blocked = time.perf_counter() - begin
            side.wait()
            whole = time.perf_counter() - begin
            side.settle()
            if number:
                out[name]["blocked"].append(blocked)
                out[name]["whole"].append(whole)
        begin = time.perf_counter()
        manifest.make(manifest.named(state), {}, {"model": {}})
        middle = time.perf_counter()
        assert not states.verify(folder / "a", number + 1)
        if number:
            out["integrity"]["blocked"].append(middle - begin)
            out["verification"]["background"].append(time.perf_counter() - middle)
    return out


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    machine = measure.machine()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measured(arguments.mib, arguments.rounds, Path(folder))
    pairs = list(zip(seconds["asynchronous"]["blocked"], seconds["synchronous"]["blocked"], strict=True))
    added = list(zip(seconds["integrity"]["blocked"], seconds["plain"]["whole"], strict=True))
    wholes = list(zip(seconds["synchronous"]["whole"], seconds["plain"]["whole"], strict=True))
    results = {
        "what": f"{arguments.mib} MiB of float32 in leaves of 32 MiB; medians over {arguments.rounds} rounds, seconds",
        "machine": machine,
        "command": f"python benchmarks/checkpoint_cost.py --mib {arguments.mib} --rounds {arguments.rounds}",
        "blocked_share": {
            "median": round(statistics.median(a / s for a, s in pairs), 4),
            "worst": round(max(a for a, _ in pairs) / statistics.median(s for _, s in pairs), 4),
            "goal": 0.10,
        },
        "integrity_share": {
            "of_a_plain_save": round(statistics.median(a / p for a, p in added), 4),
            "whole_save_over_plain": round(statistics.median(a / p for a, p in wholes) - 1, 4),
            "goal": 0.15,
        },
        "medians": {name: {part: round(statistics.median(v), 4) for part, v in parts.items()}
                    for name, parts in seconds.items()},
        "seconds": {name: {part: [round(x, 4) for x in v] for part, v in parts.items()}
                    for name, parts in seconds.items()},
    }  # fmt: skip
    measure.write(arguments.json, results)


if __name__ == "__main__":
    main()
