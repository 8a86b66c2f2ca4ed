"""`gramjax` with faults: `GRAMJAX_FAULT="KIND@PLACE[:RANK],..." faulty.py VERB ...` (RANK: of one process only).

KIND: `term`, `int` and `kill` send this process a signal, `twice` SIGTERM two times, `sleep` stands still for ever,
`raise` is a bug, `slow` makes all steps from there on take a while. `nan` puts NaN into a row of the batch of a step
(PLACE `batchN`).
PLACE: `encode` (the first row is encoded), `compile` (the step is compiled), `stepN` (before the N-th step of this
start), `evalN` (the second batch of the evaluation of step N; further batches take a while), `saveN` (the save of
step N has begun and goes on in the background).
"""

import os
import signal
import time

from gramjax.checkpoint import state as checkpoints
from gramjax.data import pipeline
from gramjax.jobs import train
from gramjax.scoring import reading
from gramjax.training import evaluation

SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT, "kill": signal.SIGKILL, "twice": signal.SIGTERM}
SLOW = 0.3
"""Seconds of a slow step, and of a batch after the signal: the runtime of several processes looks for one once a
second."""


def faults() -> dict[str, str]:
    """Place to kind, of this process."""
    found = {}
    for text in filter(None, os.environ.get("GRAMJAX_FAULT", "").split(",")):
        kind, _, rest = text.partition("@")
        place, _, rank = rest.partition(":")
        if rank in ("", os.environ.get("JAX_PROCESS_ID", "0")):
            found[place] = kind
    return found


def strike(kind: str) -> None:
    if kind == "raise":
        raise RuntimeError("broken on purpose")
    print(f"fault: {kind}", flush=True)
    if kind == "sleep":
        stand_still()
    os.kill(os.getpid(), SIGNALS[kind])
    if kind == "twice":  # at once is still the same request: Ctrl-C comes from the terminal and from the launcher
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGTERM)
        stand_still()


def stand_still() -> None:
    while True:
        time.sleep(1)


def install(planned: dict[str, str]) -> None:
    """Put the faults into the package."""
    at_step = {int(place.removeprefix("step")): kind for place, kind in planned.items() if place.startswith("step")}
    at_eval = {int(place.removeprefix("eval")): kind for place, kind in planned.items() if place.startswith("eval")}
    at_save = {int(place.removeprefix("save")): kind for place, kind in planned.items() if place.startswith("save")}
    batch, poisoned = pipeline.Pipeline.batch, {place for place in planned if place.startswith("batch")}
    encode, compile_step = pipeline.encode_rows, train.compile_step
    make_evaluator, batches, save = evaluation.make_evaluator, reading._batches, checkpoints.Checkpoints.save
    now = {"evaluation": -1}

    def encode_rows(rows, encode_one, *args, **kwargs):
        def one(row):
            if "encode" in planned:
                strike(planned.pop("encode"))
            return encode_one(row)

        return encode(rows, one, *args, **kwargs)

    def batch_of(self, index):
        made = batch(self, index)
        for array in made.values() if f"batch{index + 1}" in poisoned else ():
            if array.dtype.kind == "f":
                array[0] = float("nan")
        return made

    def compiled(*args):
        if "compile" in planned:
            strike(planned.pop("compile"))
        step, count, slow = compile_step(*args), 0, False

        def faulty_step(state, batch):
            nonlocal count, slow
            count, kind = count + 1, at_step.pop(count + 1, None)
            slow = slow or kind == "slow"
            time.sleep(SLOW * slow)
            if kind not in (None, "slow"):
                strike(kind)
            return step(state, batch)

        return faulty_step

    def evaluator(*args, **kwargs):
        evaluate = make_evaluator(*args, **kwargs)

        def faulty_evaluate(params, rows, folder, facts):
            now["evaluation"] = facts.get("step", -1)
            return evaluate(params, rows, folder, facts)

        return faulty_evaluate

    def slow_batches(*args):
        struck = False
        for number, batch in enumerate(batches(*args)):
            if number == 1 and now["evaluation"] in at_eval:
                struck = True
                strike(at_eval.pop(now["evaluation"]))
            time.sleep(SLOW * struck)
            yield batch

    def killed_save(self, step, *args):
        save(self, step, *args)
        if step in at_save:
            strike(at_save.pop(step))

    pipeline.encode_rows, train.compile_step = encode_rows, compiled
    evaluation.make_evaluator, reading._batches = evaluator, slow_batches
    checkpoints.Checkpoints.save, pipeline.Pipeline.batch = killed_save, batch_of


if __name__ == "__main__":
    from gramjax import cli

    install(faults())
    cli.run()
