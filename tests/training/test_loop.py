"""The loop's contract: the order of things, and that the host reads a step only once the next one is under way."""

import numpy as np
import pytest

from gramjax.core.errors import NotFinite, Preempted
from gramjax.training import loop


class Number:
    """A metric on a device: notes when the host reads it."""

    def __init__(self, events, step, value=1.0):
        self.events, self.step, self.value = events, step, value

    def __float__(self):
        self.events.append(("read", self.step))
        return self.value


class Source:
    def __init__(self, events):
        self.events, self.count = events, 0

    def next(self, params=None):
        self.count += 1
        self.events.append(("batch", self.count))
        return {"segment_ids": np.ones((2, 4), np.int32)}

    def metrics(self):
        return {}

    def state(self):
        return {"count": self.count}

    def names(self, index):
        return [f"row{index}"]


class Writer:
    def __init__(self, events):
        self.events, self.values = events, {}

    def write(self, step, values):
        self.events.append(("log", step))
        self.values[step] = values


def play(plan, stop=lambda: False, losses=lambda step: 1.0, best=()):
    events = []
    writer = Writer(events)

    def step_function(state, batch):
        step = state["step"] + 1
        events.append(("step", step))
        return {"params": None, "step": step}, {"loss": (Number(events, step, losses(step)), 1.0)}

    def save(step, state, extra):
        assert state["step"] == step == extra["source"]["count"]
        events.append(("save", step))

    def evaluate(step, state):
        assert state["step"] == step
        events.append(("evaluate", step))
        return step in best

    try:
        loop.run({"params": None, "step": 0}, step_function, Source(events), lambda x: x, writer, plan,
                 evaluate=evaluate, save=save, stop=stop)  # fmt: skip
    except Preempted:
        events.append(("preempted", None))
    return events, writer.values


def test_the_host_reads_a_step_only_after_the_next_one_was_dispatched():
    events, _ = play(loop.Plan(6, log_every=1))
    for step in range(1, 6):
        assert events.index(("read", step)) > events.index(("step", step + 1))


def test_no_step_is_read_between_log_events():
    events, values = play(loop.Plan(8, log_every=4), losses=float)
    assert [e for e in events if e[0] == "log"] == [("log", 4), ("log", 8)]
    assert events.index(("read", 1)) > events.index(("step", 5))
    assert values[4]["loss"] == 2.5 and values[8]["loss"] == 6.5
    assert values[8]["num_tokens"] == 64 and values[8]["mem/peak_gib"] > 0.01


def test_evaluate_the_old_state_then_save_then_batch_then_step():
    events, _ = play(loop.Plan(4, log_every=10, eval_every=2, save_every=2))
    order = [e for e in events if e[0] not in ("read", "log")]
    assert order == [("batch", 1), ("step", 1), ("batch", 2), ("step", 2), ("evaluate", 2), ("save", 2), ("batch", 3),
                     ("step", 3), ("batch", 4), ("step", 4), ("save", 4)]  # fmt: skip


def test_a_state_that_an_evaluation_wants_kept_is_saved_at_once():
    events, _ = play(loop.Plan(6, log_every=10, eval_every=2, save_every=3), best=(2,))
    assert [e for e in events if e[0] in ("evaluate", "save")] == [
        ("evaluate", 2), ("save", 2), ("save", 3), ("evaluate", 4), ("save", 6)]  # fmt: skip


def test_a_stop_saves_the_step_at_hand():
    asked = iter([False, True])
    events, _ = play(loop.Plan(9, log_every=1), stop=lambda: next(asked))
    assert events[-2:] == [("save", 2), ("preempted", None)] and ("log", 2) in events and ("step", 3) not in events


def test_a_loss_that_is_not_finite_stops_before_anything_is_saved():
    with pytest.raises(NotFinite, match="step 2"):
        play(loop.Plan(4, log_every=1, save_every=1), losses=lambda step: float("nan") if step == 2 else 1.0)
