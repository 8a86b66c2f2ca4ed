"""SLAM's check S-8 in a small form: tuning the lowest layer on translations hands a skill to a second language.

The whole check (five seeds, full tuning, LoRA and other layers beside it) is `two_languages.py` beside this file; its
numbers are in docs/results.md.
"""

import pytest
import two_languages

pytestmark = pytest.mark.optimised


def test_translations_into_the_lowest_layer_carry_sums_over():
    world = two_languages.prepare(0, steps=500)
    before = two_languages.measured(world, world.params)
    after = two_languages.tuned(world, "selective", 5e-4, steps=250)
    assert before["english"] > 0.95 and before["foreign"] < 0.15, before
    assert after["translation"] > 0.8, after
    assert after["foreign"] - before["foreign"] >= 0.4, (before, after)
    assert before["english"] - after["english"] <= 0.05, (before, after)
