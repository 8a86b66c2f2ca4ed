"""The watchdog's patience: what resets it, and what is given longer. (That it ends a process: tests/faults.)"""

import pytest

from gramjax.core import progress
from gramjax.core.watchdog import SLOW, Watchdog


class Step:
    """A result of the devices."""

    def __init__(self):
        self.done = False

    def is_ready(self):
        return self.done


@pytest.fixture
def dog():
    """A watchdog whose time is told by the test; `ended` holds what it would have said."""
    found = Watchdog(10.0, 3.0, end=lambda text: found.ended.append(text))
    found.ended, found._thread = [], object()
    return found


def test_silence_ends_the_process_and_says_where(dog):
    dog.begins("a step")
    dog.begins("a step")
    dog.tick(9.0)
    assert not dog.ended
    dog.begins("a step")
    dog.tick(9.0)
    assert not dog.ended, "it moved in between"
    dog.tick(2.0)
    assert "nothing moved for 11 s in a step" in dog.ended[0]


def test_what_is_done_for_the_first_time_or_slow_is_given_longer(dog):
    for first in ("a step", "an evaluation"):
        dog.begins(first)
        dog.tick(SLOW * 10.0 - 1)
    dog.begins("a checkpoint", slow=True)
    dog.begins("a checkpoint", slow=True)
    dog.tick(SLOW * 10.0 - 1)
    assert not dog.ended
    dog.tick(2.0)
    assert dog.ended


def test_steps_that_devices_finish_count_as_moving(dog):
    """The host may wait for many steps at once: it is far ahead of the devices."""
    steps = [Step() for _ in range(3)]
    dog.begins("a step")
    dog.begins("a step")
    for step in steps:
        dog.dispatched(step)
    for step in steps:
        dog.tick(8.0)
        step.done = True
        dog.tick(0.0)
    assert not dog.ended and not dog._running
    dog.dispatched(Step())
    dog.tick(11.0)
    assert "1 steps not finished by the devices" in dog.ended[0]


def test_the_limit_follows_the_median_step(dog):
    dog.begins("a step")
    dog.begins("a step")
    dog._steps.extend([20.0, 20.0, 500.0])
    assert dog.limit() == 60.0


def test_zero_is_never():
    with Watchdog(0.0, 20.0) as off:
        assert off._thread is None


def test_stop_points_raise_where_listened_to_only():
    def stop(what):
        raise InterruptedError(what)

    heard = []
    progress.stop_point("nobody listens")
    with progress.heard_by(progress.Listener(lambda what, slow: heard.append((what, slow)), stop)):
        progress.begins("reading", slow=True)
        with pytest.raises(InterruptedError, match="a batch"):
            progress.stop_point("a batch")
    progress.stop_point("nobody listens any more")
    assert heard == [("reading", True), ("a batch", False)]
