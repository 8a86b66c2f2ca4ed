"""Sequences with one beginning in one row: the layout, and that the model computes the same as for each alone."""

import dataclasses

import jax
import numpy as np
import pytest

from gramjax.core import plugins, spec
from gramjax.data import branches
from gramjax.data.branches import Row, Tokens
from gramjax.models import model as models
from gramjax.models.attention import SHARED
from gramjax.scoring import reading
from gramjax.scoring.reading import Layout


def tokens(*ids, mask=None):
    return Tokens(np.array(ids, np.int32), None if mask is None else np.array(mask, np.float32))


def test_the_beginning_ends_before_the_first_state_that_is_read():
    assert branches.beginning([tokens(1, 2, 3, 4), tokens(1, 2, 3, 5)]) == 3
    assert branches.beginning([tokens(1, 2, 3), tokens(1, 2, 3, 5)]) == 2  # the first is read at index 2
    assert branches.beginning([tokens(1, 2, 3), tokens(1, 2, 3)]) == 2
    scored = [tokens(1, 2, 3, 4, mask=(0, 0, 1, 1)), tokens(1, 2, 3, 9, mask=(0, 0, 1, 1))]
    assert branches.beginning(scored) == 1  # token 2 is predicted from the state at 1, which each has for itself


def test_rows_share_where_it_pays_and_do_not_depend_on_the_order_of_a_group():
    start = list(range(1, 31))
    sequences = [tokens(*start, 40, 41, 42), tokens(*start, 50), tokens(9, 8, 7)]
    assert branches.rows(sequences, [[0, 1], [2]]) == [Row((1, 0), 30, 34), Row((2,), 0, 3)]
    assert branches.rows(sequences, [[1, 0]]) == [Row((1, 0), 30, 34)]
    assert branches.rows(sequences, [[0, 1]], longest=33) == [Row((1,), 0, 31), Row((0,), 0, 33)]
    assert branches.rows(sequences, [[0, 1]], most=1) == [Row((1,), 0, 31), Row((0,), 0, 33)]
    assert len(branches.rows([tokens(1, 2), tokens(1, 3)], [[0, 1]])) == 2  # one shared token is not worth it


def test_the_layout_of_a_row_by_hand():
    sequences = [tokens(7, 8, 9, 1, 2, mask=(0, 0, 0, 0, 1)), tokens(7, 8, 9, 4, mask=(0, 0, 0, 1))]
    batch = branches.lay_out(sequences, [Row((1, 0), 2, 7)], 8, 2, 2)
    assert batch["tokens"][0].tolist() == [7, 8, 9, 4, 9, 1, 2, 0]
    assert batch["segment_ids"].tolist() == [[SHARED, SHARED, 1, 1, 2, 2, 2, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch["positions"][0].tolist() == [0, 1, 2, 3, 2, 3, 4, 0]
    assert batch["ends"].tolist() == [[3, 6], [0, 0]] and batch["example_mask"].tolist() == [[1, 1], [0, 0]]
    assert batch["labels"][0].tolist() == [0, 0, 4, 0, 1, 2, 0, 0]
    assert batch["loss_mask"][0].tolist() == [0, 0, 1, 0, 0, 1, 0, 0]


@pytest.fixture(scope="module")
def model_and_weights():
    decoder = plugins.load("models", "decoder")
    config = decoder.Config(vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2, num_heads=2,
                            num_kv_heads=1, head_dim=8, heads=("tokens", "score"), init_scale=0.3)  # fmt: skip
    model = models.build("decoder", config)
    return model, model.pack(spec.init_params(model.specs(), jax.random.key(0)))


def groups_of_texts(scored: bool):
    """Five groups of one to seven texts with beginnings of 0 to 60 tokens, equal texts among them."""
    generator = np.random.default_rng(0)
    sequences, groups = [], []
    for size, shared in ((2, 40), (1, 0), (7, 60), (3, 0), (2, 20)):
        start = generator.integers(1, 64, shared)
        group = []
        for _ in range(size):
            rest = generator.integers(1, 64, generator.integers(2, 30))
            ids = np.concatenate([start, rest]).astype(np.int32)
            mask = (np.arange(len(ids)) > shared).astype(np.float32) if scored else None
            group.append(len(sequences))
            sequences.append(Tokens(ids, mask))
        groups.append(group)
    sequences[groups[0][1]] = sequences[groups[0][0]]
    return sequences, groups


@pytest.mark.parametrize("attention", ["xla", "blocked"])
@pytest.mark.parametrize("kind", ["score", "judge", "implicit"])
def test_sharing_changes_nothing_but_rounding(model_and_weights, kind, attention):
    """Each text alone in a batch of its own against groups of up to seven in shared rows, read in every way."""
    model, weights = model_and_weights
    model = dataclasses.replace(model, attention=attention)
    reader = reading.make_reader(model, kind, (5, 6), full=True)
    sequences, groups = groups_of_texts(kind == "implicit")
    alone = [[i] for i in range(len(sequences))]
    one = reading.read_all(reader, weights, sequences, alone, Layout(1, (96,), share=False))
    together = reading.read_all(reader, weights, sequences, groups, Layout(8, (96, 192)))
    np.testing.assert_allclose(together, one, atol=2e-5)
    assert np.std(one) > 1e-2
    assert np.array_equal(together[groups[0][0]], together[groups[0][1]])  # equal texts, equal to the bit
    laid = reading.rows_of(sequences, groups, Layout())
    assert max(len(row.members) for row in laid) == reading.MOST
    assert sum(row.length for row in laid) < 0.75 * sum(len(s.tokens) for s in sequences)


def test_a_sliding_window_is_never_shared(model_and_weights):
    model, _ = model_and_weights
    assert reading.shares(model)
    windowed = dataclasses.replace(model, config=dataclasses.replace(model.config, sliding_window=8))
    assert not reading.shares(windowed)
