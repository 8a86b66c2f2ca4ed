"""The table of names: layouts are inverses, parts equal cuts of the whole, nothing is named twice."""

import dataclasses

import numpy as np
import pytest
from small_models import FAMILIES, SMALL

from gramjax.checkpoint import tables
from gramjax.core import spec, tree
from gramjax.core.errors import UserError
from gramjax.models import decoder


@pytest.mark.parametrize("layout", [tables.HEADS_OUT, tables.HEADS_IN, tables.TRANSPOSED, tables.HEADS_BIAS])
def test_parts_of_a_weight_are_cuts_of_the_whole(layout):
    shape = (4, 3, 6)[: sum(len(group) for group in layout)]
    row = tables.Row("path", "name", layout, shape)
    ours = np.arange(np.prod(shape)).reshape(shape)
    theirs = row.to_hf(ours)
    assert theirs.shape == row.hf_shape
    asked = []

    def read(index):
        asked.append(theirs[index].size)
        return theirs[index]

    everything = (slice(None),) * len(shape)
    np.testing.assert_array_equal(row.from_hf(read, everything), ours)
    for axis in range(len(shape)):
        part = tuple(slice(1, 3) if a == axis else slice(None) for a in range(len(shape)))
        np.testing.assert_array_equal(row.from_hf(read, part), ours[part])
        first_of_group = any(group[0] == axis for group in layout)
        assert (asked[-1] == ours[part].size) == first_of_group  # a shard reads no more than its own rows
    both = tuple(slice(1, 3) for _ in shape)
    np.testing.assert_array_equal(row.from_hf(read, both), ours[both])


def test_head_order_of_a_query_projection():
    # HF computes q = x @ W.T and views it as [heads, head_dim]: row h * E + e belongs to head h, channel e.
    row = tables.Row("q", "q_proj", tables.HEADS_OUT, (5, 2, 3))
    ours = np.random.default_rng(0).normal(size=(5, 2, 3))
    assert row.to_hf(ours)[1 * 3 + 2, 4] == ours[4, 1, 2]
    row = tables.Row("o", "o_proj", tables.HEADS_IN, (2, 3, 5))
    ours = ours.transpose(1, 2, 0)
    assert row.to_hf(ours)[4, 1 * 3 + 2] == ours[1, 2, 4]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("head", ["tokens", "score", "value"])
def test_every_parameter_has_one_name(name, head):
    specs = decoder.specs(dataclasses.replace(FAMILIES[name], heads=(head,)))
    rows = tables.rows(specs)
    assert list(rows) == list(tree.flatten(specs, is_leaf=spec.is_spec))
    assert len(tables.by_name(rows)) == len(rows)
    assert rows["layers/001/attn/q"].name == "model.layers.1.self_attn.q_proj.weight"


def test_two_heads_with_one_name_are_refused():
    rows = tables.rows(decoder.specs(dataclasses.replace(SMALL, heads=("score", "value"))))
    with pytest.raises(UserError, match="score and value/weight are both called score.weight"):
        tables.by_name(rows)


def test_a_parameter_without_a_name_is_refused():
    with pytest.raises(UserError, match="layers/000/router has no name"):
        tables.rows({"layers": {"000": {"router": spec.Spec((2,), (None,))}}})
