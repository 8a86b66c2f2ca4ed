"""GRAM's learning check S1 in a small form: with few labels, stage 1 on unlabelled pairs pays.

The whole check (three seeds, both label counts, the shuffled control) is `permutation_world.py` beside this file; its
numbers are in docs/results.md.
"""

import permutation_world
import pytest

pytestmark = pytest.mark.optimised


def test_stage_1_pays_with_few_labels():
    found, reached = permutation_world.run(0, (256,), stage1_steps=700, stage1_size=40_000, stage2_steps=100)
    both, one_order, _ = found[256, "stage1"]
    from_nothing = found[256, "random"][0]
    assert reached < 2.0  # nats per token; a guess costs 2.218
    assert both - from_nothing >= 0.06, found  # 0.12, 0.12 and 0.16 seen with seeds 0, 1, 2
    assert both >= 0.65 and both >= one_order, found
