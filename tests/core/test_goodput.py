"""Wall time by cause: every second belongs to one, waiting counts only while the devices idle, restarts add up."""

import threading

import pytest

from gramjax.core import goodput
from gramjax.core.progress import Listener, begins, heard_by


class Time:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Result:
    """A step that is done when it is told so."""

    def __init__(self, ready):
        self.ready = ready

    def is_ready(self):
        return self.ready


@pytest.fixture
def time():
    return Time()


def play(clock, time, *parts):
    """What begins, and how long it takes."""
    for what, seconds in parts:
        clock.begins(what)
        time.now += seconds


def seconds(clock):
    return {name.removeprefix("goodput/"): value for name, value in clock.numbers().items()}


def test_every_second_has_one_cause(time):
    clock = goodput.Clock(time)
    time.now += 1
    play(
        clock, time, ("reading the weights", 2), ("the compilation of the training step", 4), ("a training step", 8),
        ("an evaluation", 16), ("a batch of scoring", 32), ("a checkpoint", 64), ("a training step", 128),
    )  # fmt: skip
    found = seconds(clock)
    assert found == {"share": round(136 / 255, 4), "starts": 1, "startup": 3, "compile": 4, "steps": 136,
                     "evaluation": 48, "saving": 64}  # fmt: skip
    rows = goodput.table([{"step": 1, "loss": 2.0}, {"step": 2, **clock.numbers()}])
    assert sum(share for _, _, share in rows) == pytest.approx(1.0) and rows[0] == ("training steps", 136, 136 / 255)
    assert goodput.table([{"step": 1, "loss": 2.0}]) == []


@pytest.mark.parametrize(("before", "after", "lost"), [(True, True, 6), (False, True, 3), (False, False, 0)])
def test_waiting_for_data_is_lost_while_the_devices_have_nothing_to_do(time, before, after, lost):
    clock, result = goodput.Clock(time), Result(before)
    play(clock, time, ("a training step", 1))
    clock.dispatched(result)
    clock.begins("the next batch")
    time.now += 6
    result.ready = after
    clock.begins("a training step")
    found = seconds(clock)
    assert (found.get("data", 0), found["steps"]) == (lost, 7 - lost)


def test_rollouts_are_no_steps(time):
    clock = goodput.Clock(time)
    clock.rolls = True
    play(clock, time, ("the next batch", 5), ("a round of the sampler", 5), ("a training step", 10))
    assert seconds(clock) == {"share": 0.5, "starts": 1, "rollout": 10, "steps": 10}


def test_a_run_that_goes_on_adds_up_and_knows_what_it_does_twice(time):
    """Killed after step 6, goes on from step 4: the time of the steps 5 and 6 was for nothing."""
    first, log = goodput.Clock(time), []
    time.now += 3
    for step in range(1, 7):
        play(first, time, ("a training step", 2), ("a checkpoint", 1))
        log.append({"step": step, **first.numbers()})
    second = goodput.Clock(time)
    second.goes_on(log, 4)
    time.now += 3
    play(second, time, ("a training step", 4))
    assert seconds(second) == {"share": round(12 / 28, 4), "starts": 2, "startup": 6, "steps": 12, "saving": 6,
                               "repeated": 4}  # fmt: skip
    third = goodput.Clock(time)
    third.goes_on([*log[:4], {"step": 6, **second.numbers()}], 0)  # no checkpoint is left: all steps again
    assert seconds(third)["repeated"] == 16 and "steps" not in seconds(third) and seconds(third)["starts"] == 3
    fresh = goodput.Clock(time)
    fresh.goes_on([{"step": 3, "loss": 1.0}], 3)  # metrics of an older version
    assert seconds(fresh)["starts"] == 1


def test_other_threads_do_not_move_the_clock(time):
    clock = goodput.Clock(time)
    with heard_by(Listener(clock.begins)):
        begins("a training step")
        time.now += 1
        thread = threading.Thread(target=begins, args=("the encoding of rows",))
        thread.start()
        thread.join()
        time.now += 1
    assert seconds(clock) == {"share": 1.0, "starts": 1, "steps": 2}
