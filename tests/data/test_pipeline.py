"""Batches: layout, masks, packing, exact resumption, and evaluation that sees every row once."""

import json

import numpy as np
import pytest

from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import pipeline, text
from gramjax.data.rows import Drop, Tally


def single(length, name=0, first=10):
    """An example whose tokens name it: `first + name` repeated."""
    return text.example(([first + name] * length, [0.0] + [1.0] * (length - 1)), name=name, weight=name / 2)


def pair(chosen, rejected, name=0):
    return text.example(([10 + name] * chosen, [1.0] * chosen), ([60 + name] * rejected, [1.0] * rejected), name=name)


def examples(items, ids=None):
    return pipeline.Examples(list(items), ids or [str(i) for i in range(len(items))], Tally())


def section(**settings):
    return DataSection(**{"max_length": 8} | settings)


def build(count=10, batch_size=4, seed=3, **settings):
    made = {k: settings.pop(k) for k in ("epochs", "steps", "process_index", "process_count", "files") if k in settings}
    return pipeline.Pipeline(
        examples([(single(3, i),) for i in range(count)]), section(**settings), batch_size, seed, pad_id=1, **made
    )


def names(batch):
    return [int(n) for n in batch["name"][:, 0]]


# -- layout


def test_layout_of_a_batch():
    ids = text.example(([5, 6, 7, 8], [0.0, 0.0, 1.0, 0.5]), verdict=1, margin=0.25)
    batch = pipeline.collate([[ids]], 6, pad_id=1)
    assert batch["tokens"].tolist() == [[5, 6, 7, 8, 1, 1]]
    assert batch["labels"].tolist() == [[6, 7, 8, 1, 1, 1]]
    assert batch["loss_mask"].tolist() == [[0.0, 1.0, 0.5, 0.0, 0.0, 0.0]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 0]]
    assert batch["ends"].tolist() == [[3]] and batch["example_mask"].tolist() == [[1.0]]
    assert batch["verdict"].dtype == np.int32 and batch["margin"].dtype == np.float32
    assert {batch[k].dtype for k in ("tokens", "labels", "segment_ids", "positions", "ends")} == {np.dtype(np.int32)}


def test_packed_examples_stay_apart():
    batch = pipeline.collate([[single(3, 0), single(2, 1)], [single(4, 2)]], 6, slots=2)
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert batch["positions"].tolist()[0] == [0, 1, 2, 0, 1, 0]
    assert batch["ends"].tolist() == [[2, 4], [3, 0]] and batch["example_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["name"].tolist() == [[0, 1], [2, 0]]
    assert batch["loss_mask"].tolist()[0] == [1, 1, 0, 1, 0, 0], "nothing is predicted across a boundary"
    for row in range(2):
        scored = batch["loss_mask"][row] > 0
        assert (batch["labels"][row][scored] == batch["tokens"][row][scored]).all(), "a label is its own segment's"


def test_pairs_have_an_axis_of_two_and_share_a_slot_when_packed():
    batch = pipeline.collate([[pair(2, 4, 0), pair(3, 1, 1)]], 6, slots=2)
    assert batch["tokens"].shape == (1, 2, 6) and batch["ends"].tolist() == [[[1, 4], [3, 4]]]
    assert batch["segment_ids"].tolist() == [[[1, 1, 2, 2, 2, 0], [1, 1, 1, 1, 2, 0]]]
    assert batch["tokens"][0, 0, 2] == 11 and batch["tokens"][0, 1, 4] == 61
    assert batch["name"].shape == (1, 2)


def test_packing_plan_holds_every_example_once_and_both_sides_fit():
    rng = np.random.default_rng(0)
    lengths = [[int(a), int(b)] for a, b in rng.integers(1, 20, (60, 2))]
    plan = pipeline.pack_plan(lengths, 32, range(60))
    assert sorted(i for group in plan for i in group) == list(range(60))
    for group in plan:
        assert all(sum(lengths[i][side] for i in group) <= 32 for side in range(2))
    assert len(plan) < 40
    with pytest.raises(DataError, match="33 tokens, more than 32"):
        pipeline.pack_plan([[33, 1]], 32, [0])


def test_a_packed_pipeline_shows_every_example_once_per_epoch():
    items = [(single(2 + i % 3, i),) for i in range(20)]
    made = pipeline.Pipeline(examples(items), section(packing=True), 2, 0, epochs=3)
    seen: list[int] = []
    for _ in range(made.steps):
        batch = made.next()
        seen += [int(n) for n in batch["name"][batch["example_mask"] > 0]]
    epochs = len(seen) / 20
    assert epochs > 2 and all(abs(seen.count(i) - epochs) < 1.01 for i in range(20))


# -- order and resumption


def test_every_epoch_shows_every_example_once_in_another_order():
    def order(**settings):
        made = build(count=10, batch_size=2, epochs=3, **settings)
        assert made.steps == 15 and made.steps_per_epoch == 5 and made.epoch(5) == 1.0
        return [name for _ in range(15) for name in names(made.next())]

    seen = order()
    epochs = [seen[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != list(range(10))
    assert seen == order() != order(seed=4)


@pytest.mark.parametrize("stop", [0, 1, 2, 3, 5, 7])
def test_resuming_is_exact_also_across_an_epoch_boundary(stop):
    """10 examples in batches of 4: the third batch holds the end of one epoch and the start of the next."""
    items = [(single(3, i), single(3, i, first=40)) for i in range(10)]

    def fresh():
        return pipeline.Pipeline(examples(items), section(), 4, 7, epochs=4)

    whole = fresh()
    expected = [whole.next() for _ in range(whole.steps)]
    assert sorted(names(expected[0]) + names(expected[1]) + names(expected[2])[:2]) == list(range(10))
    first = fresh()
    for _ in range(stop):
        first.next()
    state = json.loads(json.dumps(first.state()))
    second = fresh()
    second.restore(state)
    assert second.state() == first.state()
    for step in range(stop, whole.steps):
        got = second.next()
        assert got.keys() == expected[step].keys()
        assert all(np.array_equal(got[k], expected[step][k]) for k in got)


def test_one_rendering_per_epoch_is_drawn_evenly_and_anew():
    items = [(single(3, i), single(3, i, first=50)) for i in range(40)]
    made = pipeline.Pipeline(examples(items), section(), 8, 0, epochs=6)
    drawn = np.zeros((6, 40), int)
    for step in range(made.steps):
        batch = made.next()
        drawn[step // 5, names(batch)] = batch["tokens"][:, 0] >= 50
    assert 0.35 < drawn.mean() < 0.65
    assert all((drawn[:, i] != drawn[0, i]).any() for i in range(40) if 0 < drawn[:, i].sum() < 6)
    assert (drawn[0] != drawn[1]).any()


def test_renderings_settings():
    def encode(row):
        return single(3, 0), single(3, 1)

    rows = [{"id": "a"}, {"id": "b"}]
    assert [len(item) for item in pipeline.encode_rows(rows, encode).items] == [2, 2]
    every = pipeline.encode_rows(rows, encode, section(renderings="all"))
    assert [len(item) for item in every.items] == [1] * 4 and every.ids == ["a", "a", "b", "b"]
    first = pipeline.encode_rows(rows, encode, section(renderings="first"))
    assert [item[0].fields["name"] for item in first.items] == [0, 0]


def test_processes_share_the_batch_of_one():
    whole = build(count=12, batch_size=4, epochs=2)
    parts = [build(count=12, batch_size=4, epochs=2, process_index=i, process_count=2) for i in range(2)]
    for _ in range(whole.steps):
        together = [part.next()["tokens"] for part in parts]
        assert np.array_equal(whole.next()["tokens"], np.concatenate(together))
    state = whole.state()
    parts[0].restore(state)  # another number of processes keeps the data order
    with pytest.raises(UserError, match="does not divide among 3 processes"):
        build(process_count=3)


def test_too_little_data_is_refused():
    with pytest.raises(UserError, match="3 examples do not fill one batch of 4, so there would be 0 steps"):
        build(count=3)
    with pytest.raises(UserError, match="less than one batch"):
        build(count=10, epochs=0.3)
    assert build(count=10, epochs=0.5).steps == 1 and build(count=10, steps=77).steps == 77


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 4}, "seed=3, now it is 4"),
        ({"batch_size": 2}, "batch_size=4, now it is 2"),
        ({"count": 11}, "examples="),
        ({"max_length": 9}, "max_length=8, now it is 9"),
        ({"packing": True}, "packing=False, now it is True"),
        ({"files": [{"name": "a.jsonl", "size": 3, "sha256": "y"}]}, "a.jsonl has other content"),
        ({"files": [{"name": "b.jsonl", "size": 3, "sha256": "x"}]}, "a.jsonl is gone"),
    ],
)
def test_a_state_of_other_data_is_refused_by_name(change, name):
    files = [{"name": "a.jsonl", "size": 3, "sha256": "x"}]
    state = build(files=files).state()
    with pytest.raises(UserError) as error:
        build(**{"files": files} | change).restore(state)
    assert name in str(error.value)
    build(files=files).restore(state)


@pytest.mark.parametrize("state", [{}, {"step": -1, "fingerprint": {}}, {"step": 3}, {"step": "3", "fingerprint": {}}])
def test_a_broken_state_is_refused(state):
    with pytest.raises(UserError, match="not one of this pipeline"):
        build().restore(state)


# -- encoding


def test_losses_are_counted_and_all_lost_is_an_error_with_the_median():
    def encode(row):
        if row["n"] > 2:
            raise Drop("longer than max_length 8", 100 * row["n"])
        if row["n"] == 2:
            raise Drop("no token to predict")
        return single(3, row["n"])

    rows = [{"id": f"r{n}", "n": n} for n in range(4)]
    made = pipeline.encode_rows(rows, encode, section(max_overlong_share=0.5))
    assert len(made) == 2 and made.overlong == [300]
    assert made.dropped == {"no token to predict": (1, "r2"), "longer than max_length 8": (1, "r3")}
    with pytest.raises(
        DataError, match=r"1 of 4 rows are longer than max_length 8 \(median 300 tokens\).*max_length=512"
    ):
        pipeline.encode_rows(rows, encode, section())
    assert len(pipeline.encode_rows(rows, encode, section(), limit_share=False)) == 2
    with pytest.raises(DataError) as error:
        pipeline.encode_rows(rows[2:], encode, section(), dropped=Tally({"tie": (2, "f row 1")}))
    assert str(error.value) == (
        "0 of 4 rows usable: 2 tie, first f row 1; 1 no token to predict, first r2; "
        "1 longer than max_length 8 (median 300), first r3. Try --config.data.max_length=512"
    )


def test_ids_outside_the_vocabulary_and_unequal_renderings_are_refused():
    with pytest.raises(DataError, match="row 'x': token id 10 does not exist in a vocabulary of 10"):
        pipeline.encode_rows([{"id": "x"}], lambda row: single(3, 0), section(), vocab_size=10)
    assert len(pipeline.encode_rows([{"id": "x"}], lambda row: single(3, 0), section(), vocab_size=11)) == 1
    with pytest.raises(DataError, match="row 'x': its renderings differ in length"):
        pipeline.encode_rows([{"id": "x"}], lambda row: (single(3), single(4)), section())


def test_errors_of_encoding_name_the_row():
    def encode(row):
        raise DataError("the chat template refuses these messages: no")

    with pytest.raises(DataError, match="row 'x': the chat template refuses"):
        pipeline.encode_rows([{"id": "x"}], encode, section())


# -- evaluation


def test_evaluation_sees_every_example_once():
    made = [single(1 + i % 7, i) for i in range(23)]
    seen, shapes = [], set()
    for indices, batch in pipeline.batches(made, 4, lengths=(4, 8)):
        real = batch["example_mask"][:, 0] > 0
        assert real.sum() == len(indices) and names(batch)[: len(indices)] == [int(i) for i in indices]
        assert batch["loss_mask"][~real].sum() == 0
        shapes.add(batch["tokens"].shape)
        for row, index in enumerate(indices):
            end = batch["ends"][row, 0]
            assert batch["tokens"][row, : end + 1].tolist() == made[index].tokens[0].tolist()
        seen += [int(i) for i in indices]
    assert sorted(seen) == list(range(23)) and shapes == {(4, 4), (4, 8)}
