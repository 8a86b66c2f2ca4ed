"""Judging and proving as annotators: labels are not shown, every row comes out or is counted."""

import json

import pytest

from gramjax.annotators import judge_pairs, prove_preferences
from gramjax.core.config import DataSection, SamplingSection
from gramjax.data import readers
from gramjax.data.judge_prompts import in_random_order
from gramjax.data.recipes import permutation_world as world
from gramjax.data.rows import Drop
from gramjax.generation.judging import Judging
from gramjax.generation.proving import Proving

SHORT = SamplingSection(max_tokens=4, temperature=2.0, n=3)
JUDGING = judge_pairs.Config(Judging(SHORT, instruction=world.JUDGE_PROMPT))
SAMPLED = SamplingSection(max_tokens=32, temperature=1.0, n=2)
PROVING = prove_preferences.Config(Proving(SAMPLED, instruction=world.PROVER_PROMPT, min_score=-100.0))
LONG = {"id": "long", "prompt": "Map: a b c d", "responses": ["Out: " + "a " * 200, "Out: b"], "label": "A"}


def annotated(plugin, rows, sampler, config, seed=0):
    refused = []
    found = list(plugin.annotate(iter(rows), sampler, config, seed, lambda row, why: refused.append((row["id"], why))))
    return found, refused


def test_a_label_is_never_shown_to_the_judge(prover):
    """The same draws with a label, a gold label, a rationale, or none; what was known stands in `gold`."""
    rows = world.rows("train", 4)
    bare = [{k: v for k, v in row.items() if k not in ("label", "rationale")} for row in rows]
    other = [{**row, "label": "A" if row["label"] == "B" else "B"} for row in rows]
    golden = [{**row, "gold": "A"} for row in bare]
    reference, _ = annotated(judge_pairs, bare, prover, JUDGING)
    assert all("gold" not in row and "rationale" not in row for row in reference)
    assert any(draw["reply"] for row in reference for draw in row["judgements"])
    for given, gold in ((rows, [r["label"] for r in rows]), (other, [r["label"] for r in other]), (golden, ["A"] * 4)):
        found, _ = annotated(judge_pairs, given, prover, JUDGING)
        assert [row.pop("gold") for row in found] == gold
        assert found == reference
    both, _ = annotated(judge_pairs, [{**row, "gold": "B"} for row in rows], prover, JUDGING)
    assert [row["gold"] for row in both] == ["B"] * 4, "a pseudo-label of an earlier round does not replace gold"


def test_every_column_of_a_judged_row_is_json(prover):
    (row,), _ = annotated(judge_pairs, world.rows("unlabelled", 1), prover, JUDGING)
    columns = {"label", "vote_share", "label_probability", "tied", "votes_a", "votes_b", "failed", "agreement"}
    assert columns | {"judgements", "prompt", "responses", "id"} <= set(row) and len(row["judgements"]) == 3
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def read(rows, tmp_path, plugin):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return readers.read(str(path), DataSection(), plugin.ROW_TYPES).rows


@pytest.mark.parametrize("kind", ["rationale", "pair", "preference"])
def test_labelled_rows_of_every_type_are_proved_for_their_label(prover, tmp_path, kind):
    """Read from a file as the job does: the better response stays the better one."""
    pairs = world.rows("train", 6)
    better = {row["id"]: row["responses"]["AB".index(row["label"])] for row in pairs}
    rows = pairs
    if kind == "pair":
        rows = [{k: v for k, v in row.items() if k != "rationale"} for row in pairs]
    elif kind == "preference":
        rows = [{"id": r["id"], "prompt": r["prompt"], "chosen": better[r["id"]],
                 "rejected": next(x for x in r["responses"] if x != better[r["id"]])} for r in pairs]  # fmt: skip
    found, refused = annotated(prove_preferences, read(rows, tmp_path, prove_preferences), prover, PROVING)
    assert found and sorted([row["id"] for row in found] + [name for name, _ in refused]) == sorted(better)
    for row in found:
        assert row["responses"]["AB".index(row["label"])] == better[row["id"]]
        assert f"<answer>{row['label']}</answer>" in row["rationale"]
        assert [set(proof) for proof in row["proofs"]] == [{"proof", "score", "reason"}] * 2
        assert json.loads(json.dumps(row, allow_nan=False)) == row
    if kind == "preference":
        assert {row["label"] for row in map(in_random_order, rows)} == {"A", "B"}, "in a drawn order"


def test_gold_of_preference_rows_is_known_to_the_judge_alone(prover, tmp_path):
    pairs = [{"id": "p", "prompt": "Map: a b c d", "chosen": "Out: a b c d", "rejected": "Out: a a a a"}]
    (row,), _ = annotated(judge_pairs, read(pairs, tmp_path, judge_pairs), prover, JUDGING)
    assert row["responses"]["AB".index(row["gold"])] == "Out: a b c d"
    assert not {"chosen", "rejected"} & set(row)


@pytest.mark.parametrize("plugin,config", [(judge_pairs, JUDGING), (prove_preferences, PROVING)])
def test_one_row_out_for_each_row_in_or_a_reason(prover, plugin, config):
    rows = [*world.rows("train", 5), LONG, {**LONG, "id": "question", "prompt": "Map: " + "a " * 200}]
    found, refused = annotated(plugin, rows, prover, config)
    names = [row["id"] for row in found] + [name for name, _ in refused]
    assert sorted(names) == sorted(row["id"] for row in rows)
    assert [row["id"] for row in found] == [row["id"] for row in rows if row["id"] in {r["id"] for r in found}]
    assert ("question", dict(refused)["question"]) in refused and all(why for _, why in refused)
    assert ("long" in dict(refused)) == (plugin is prove_preferences), "a judge sees shortened responses"


def test_nothing_is_dropped_in_silence(prover):
    """Without `refuse` a pair whose proofs are all rejected raises its reason."""
    config = prove_preferences.Config(Proving(SamplingSection(max_tokens=4, n=1), instruction=world.PROVER_PROMPT))
    with pytest.raises(Drop, match="proof not finished"):
        list(prove_preferences.annotate(world.rows("train", 1), prover, config))
