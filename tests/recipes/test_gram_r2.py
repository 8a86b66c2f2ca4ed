"""The steps of GRAM-R2 and of its ablations, and the numbers that are read off what they leave."""

import json
from pathlib import Path

import pytest

from gramjax.core import checks, flags
from gramjax.core import config as configs
from gramjax.core.config import DataSection
from gramjax.core.errors import UserError
from gramjax.data import readers, tokenizer
from gramjax.data.recipes import permutation_world as world
from gramjax.data.text import Renderer
from gramjax.objectives import rationale_preference
from gramjax.plots import rounds as plots
from gramjax.recipes import gram_r2
from gramjax.selection.rows import balanced_labels

SETTINGS = {
    "rationales": ("human.jsonl",), "labelled": (), "unlabelled": ("one.jsonl", "two.jsonl"), "rounds": 2,
}  # fmt: skip
ROUND = ["judge", "votes", "proofs", "rules", ""]


def planned(workdir="runs", name="gram_r2_toy", **changes):
    """The steps of a recipe by name (without number), after every config was checked."""
    config = flags.load(name)
    config.recipe.update({**SETTINGS, **changes})
    steps = gram_r2.steps(config, Path(workdir))
    for number, step in enumerate(steps):
        assert step.name.startswith(f"{number:02d}-")
        checks.check(step.config, step.verb)
    return {step.name[3:]: step for step in steps}


def names_of(number, *parts):
    return [f"R{number}-{part}" if part else f"R{number}" for part in parts]


def place(steps, name, file=""):
    return str(Path("runs") / "steps" / steps[name].name / file)


ABLATIONS = {
    "all": ({}, ["prover", "R0", *names_of(1, *ROUND), *names_of(2, *ROUND), "final"]),
    "no self-training": ({"rounds": 0}, ["R0", "final"]),
    "no final tuning": ({"final": False, "rounds": 1, "unlabelled": ("one.jsonl",)},
                        ["prover", "R0", *names_of(1, "pairs", *ROUND)]),
    "one source": ({"unlabelled": ("one.jsonl",), "final": False},
                   ["prover", "R0", *names_of(1, "pairs", *ROUND), *names_of(2, "pairs", *ROUND)]),
    "labels only": ({"rationale_source": "none"},
                    ["R0", *names_of(1, "judge", "votes", "balance", ""), *names_of(2, "judge", "votes", "balance", ""),
                     "final"]),
    "own rationales": ({"rationale_source": "self"},
                       ["R0", *names_of(1, "judge", "votes", "own", "rules", ""),
                        *names_of(2, "judge", "votes", "own", "rules", ""), "final"]),
    "stage 1 first": ({"pretrain": ("pairs.jsonl",), "rounds": 0}, ["base", "R0", "final"]),
    "a prover that exists": ({"prover": "judge_folder", "rationales": (), "labelled": ("x.jsonl",), "rounds": 0},
                             ["proofs", "rules", "R0"]),
    "labelled pairs": ({"labelled": ("pairs.jsonl",), "rounds": 0}, ["prover", "proofs", "rules", "R0", "final"]),
    "labelled pairs, labels only": ({"labelled": ("pairs.jsonl",), "rationale_source": "none", "rationales": ()},
                                    ["R0", *names_of(1, "judge", "votes", "balance", ""),
                                     *names_of(2, "judge", "votes", "balance", "")]),
    "labelled pairs, own rationales": ({"labelled": ("pairs.jsonl",), "rationale_source": "self", "rounds": 0},
                                       ["prover", "proofs", "rules", "R0", "final"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_has_its_steps(name):
    """Section 2.8 of the specification; nothing is made that no later step reads."""
    changes, wanted = ABLATIONS[name]
    steps = planned(**changes)
    assert list(steps) == wanted
    read = json.dumps([flags.checks.flatten(step.config) for step in steps.values()], default=str)
    last = [step for step in steps.values() if step.verb == "train"][-1].name
    assert all(f"steps/{step.name}" in read for step in steps.values() if step.name != last)


@pytest.mark.parametrize("config", ["gram_r2", "gram_r2_toy"])
def test_rows_and_weights_flow_from_step_to_step(config):
    steps = planned(name=config)
    human = ("human.jsonl",)
    assert steps["prover"].config.data.train == steps["R0"].config.data.train == human
    assert steps["prover"].config.objective.part == "prover" and steps["R0"].config.objective.part == "judge"
    first, second = (place(steps, f"R{n}-rules", "rows.jsonl") for n in (1, 2))
    assert steps["R1"].config.data.train == (*human, first)
    assert steps["R2"].config.data.train == (*human, first, second), "everything so far"
    for number, source in ((1, "one.jsonl"), (2, "two.jsonl")):
        chain = [source, *(place(steps, f"R{number}-{part}", "rows.jsonl") for part in ROUND[:3])]
        for part, path in zip(ROUND[:4], chain, strict=True):
            assert steps[f"R{number}-{part}"].config.data.path == path
        assert steps[f"R{number}-judge"].config.model.path == place(steps, f"R{number - 1}")
        assert steps[f"R{number}-proofs"].config.model.path == place(steps, "prover")
    assert {steps[name].config.model.path for name in ("prover", "R0", "R1", "R2")} == {""}, "from the base model"
    assert steps["final"].config.model.path == place(steps, "R2") and steps["final"].config.data.train == human
    assert steps["R1-judge"].config.annotator.name == "judge_pairs"


def test_each_round_may_start_from_the_one_before():
    steps = planned(init="previous")
    assert [steps[f"R{n}"].config.model.path for n in (0, 1, 2)] == ["", place(steps, "R0"), place(steps, "R1")]
    sizes = [steps[name].config.model.arch for name in ("R0", "R1")]
    assert sizes == [flags.load("gram_r2_toy").model.arch, configs.defaults().model.arch], "they come with the weights"


def test_prover_and_judges_start_from_stage_1_where_there_is_one():
    steps = planned(pretrain=("pairs.jsonl",), rounds=1, unlabelled=("one.jsonl",))
    base = steps["base"].config
    assert (base.objective.name, base.objective.stage) == ("generative_preference", "pretrain")
    assert base.data.train == ("pairs.jsonl",) and base.model.path == "" and not base.train.evaluate
    assert {steps[name].config.model.path for name in ("prover", "R0", "R1")} == {place(steps, "base")}
    assert steps["final"].config.model.path == place(steps, "R1")
    later = planned(pretrain=("pairs.jsonl",), init="previous")
    assert [later[f"R{n}"].config.model.path for n in (0, 1)] == [place(later, "base"), place(later, "R0")]


def test_a_prover_that_exists_is_used():
    steps = planned(prover="folder")
    assert "prover" not in steps
    assert {steps[f"R{n}-proofs"].config.model.path for n in (1, 2)} == {"folder"}


def test_r0_learns_from_labelled_pairs_with_proofs_or_from_their_labels():
    steps = planned(labelled=("pairs.jsonl",))
    assert steps["proofs"].config.data.path == "pairs.jsonl"
    assert steps["R0"].config.data.train == (place(steps, "rules", "rows.jsonl"),)
    bare = planned(labelled=("pairs.jsonl",), rationale_source="none")
    assert bare["R0"].config.data.train == ("pairs.jsonl",)
    assert {step.config.objective.part for step in bare.values() if step.verb == "train"} == {"label"}


def test_parts_of_one_source_are_one_per_round():
    steps = planned(unlabelled=("pairs.jsonl",))
    parts = [steps[f"R{n}-pairs"].config for n in (1, 2)]
    assert [(c.selection.part, c.selection.parts, c.data.path) for c in parts] == [
        (0, 2, "pairs.jsonl"), (1, 2, "pairs.jsonl")
    ]  # fmt: skip


def test_settings_reach_the_steps_that_use_them():
    """No denoising, no proof selection, and the other thresholds; the recipe's rules are those of the proofs too."""
    config = flags.load("gram_r2_toy")
    config.recipe.update(SETTINGS)
    recipe = config.recipe
    recipe.judging.sampling.n, recipe.rules.min_vote_share, recipe.rules.min_probability = 1, 0.0, 0.0
    recipe.proving.choice, recipe.rules.max_tokens, recipe.most_per_round = "first", 77, 5
    recipe.label_weight, recipe.swap = 3.0, True
    config.phases.judge.train.steps, config.phases.prover.train.steps = 11, 7
    config.data.rename, config.data.limit, config.seed = ("question:prompt",), 9, 4
    steps = {step.name[3:]: step.config for step in gram_r2.steps(config, Path("runs"))}
    assert steps["R1-judge"].annotator.judging.sampling.n == 1
    assert steps["R1-votes"].selection.rules.min_vote_share == steps["R1-votes"].selection.rules.min_probability == 0
    assert steps["R1-proofs"].annotator.proving.choice == "first"
    assert steps["R1-proofs"].annotator.proving.rules.max_tokens == steps["R1-rules"].selection.rules.max_tokens == 77
    assert steps["R1-rules"].selection.most == 5
    assert steps["R1-rules"].selection.tokenizer == "recipe:permutation_world"
    assert (steps["R1"].objective.label_weight, steps["R1"].objective.swap) == (3.0, True)
    assert (steps["prover"].objective.label_weight, steps["prover"].objective.swap) == (1.0, False)
    assert steps["R0"].objective.instruction == steps["R1-judge"].annotator.judging.instruction == world.JUDGE_PROMPT
    assert steps["prover"].objective.instruction == world.PROVER_PROMPT
    assert (steps["R1"].train.steps, steps["prover"].train.steps) == (11, 7), "what the phases change"
    for name, step in steps.items():
        assert (step.data.rename, step.data.limit, step.seed) == (("question:prompt",), 9, 4), name


def test_evals_are_for_judges_with_held_out_rows():
    config = flags.load("gram_r2_toy")
    steps = {step.name[3:]: step.config for step in gram_r2.steps(config, Path("runs"))}
    assert steps["R1"].train.evaluate and steps["R1"].evals.rationale.judging.instruction == world.JUDGE_PROMPT
    assert not steps["prover"].train.evaluate and not steps["prover"].evals
    config.train.evaluate = False
    assert not any(step.config.train.evaluate for step in gram_r2.steps(config, Path("runs")) if step.verb == "train")
    config.train.evaluate, config.data.valid = True, ()
    assert not any(step.config.train.evaluate for step in gram_r2.steps(config, Path("runs")) if step.verb == "train")


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"rationales": ()}, "config.recipe.rationales is empty"),
        ({"rationales": (), "labelled": ("x",), "rationale_source": "self"}, "config.recipe.rationales is empty"),
        ({"rationales": (), "rationale_source": "none"}, "there is nothing to learn from"),
        ({"rationale_source": "judge"}, "rationale_source='judge' is not one of prover, self, none"),
        ({"init": "last"}, "init='last'"),
        ({"unlabelled": ()}, "has 0 sources for 2 rounds"),
        ({"rounds": 3}, "has 2 sources for 3 rounds"),
        ({"rounds": -1}, "has 2 sources for -1 rounds"),
        ({"labelled": ("x", "y")}, "config.recipe.labelled has 2 sources"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        planned(**changes)


def test_a_misspelt_phase_is_refused():
    config = flags.load("gram_r2_toy")
    config.phases.jugde = {"train": {"steps": 3}}
    with pytest.raises(UserError, match="config.phases.jugde: the phases of this recipe are .*prover, judge, final"):
        gram_r2.steps(config, Path("runs"))


def test_labels_alone_are_learned_from_human_rationales_and_pseudo_labels_together(tmp_path):
    """A file of rationale rows and one of balanced pseudo-labels are read as one set of preference rows."""
    human, voted = world.rows("train", 4), world.rows("unlabelled", 6)
    voted = [{**row, "label": "AB"[i % 2]} for i, row in enumerate(voted)]
    kept, _ = balanced_labels.select(voted, None, balanced_labels.Config())
    for name, made in (("human", human), ("rows", kept)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    config = rationale_preference.Config("label", world.JUDGE_PROMPT)
    sources = [str(tmp_path / "human.jsonl"), str(tmp_path / "rows.jsonl")]
    found = readers.read_all(sources, DataSection(), rationale_preference.row_types(config)).rows
    assert len(found) == 10
    better = {row["id"]: row["responses"]["AB".index(row["label"])] for row in human + voted}
    given = Renderer(tokenizer.load("recipe:permutation_world"), DataSection(max_length=world.MAX_LENGTH))
    for row in found:
        assert row["chosen"] == better[row["id"]]
        text = given.tokenizer.decode(rationale_preference.encode(row, given, config).tokens[0])
        letter = text.partition("<answer>")[2].strip()[0]
        assert f"Assistant {letter}'s Response]\n{better[row['id']]}\n" in text


# -- rounds.json -------------------------------------------------------------------------------------------------------


def leave(folder, rows, refused=None):
    """What a step of rows leaves."""
    refused = refused or {}
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = len(rows) + sum(found["count"] for found in refused.values())
    summary = {"rows": before, "written": len(rows), "refused": refused, "unreadable": {}}
    (folder / "summary.json").write_text(json.dumps(summary))


def judged(name, label, gold, first, share):
    columns = {"label": label, "vote_share": share, "judgements": [{"verdict": first}, {"verdict": label}]}
    return {"id": name, **columns} | ({} if gold is None else {"gold": gold})


JUDGED = [
    judged("a", "A", "A", "A", 1.0), judged("b", "B", "A", "B", 0.75), judged("c", "B", "B", "A", 0.75),
    judged("d", "A", None, "A", 1.0), judged("e", None, "B", None, 0.0),
]  # fmt: skip


@pytest.fixture
def half_done(tmp_path):
    """A recipe that is done up to the filters of its first round."""
    config = flags.load("gram_r2_toy")
    config.recipe.update({**SETTINGS, "labelled": ("pairs.jsonl",)})
    folders = {step.name[3:]: tmp_path / "steps" / step.name for step in gram_r2.steps(config, tmp_path)}
    for name in ("prover", "R0"):
        (folders[name] / "eval").mkdir(parents=True)
        (folders[name] / "DONE").write_text("")
        data = {"rows": 9, "examples": 8, "dropped": {"too long": [1, "x-3"]}}
        (folders[name] / "data.json").write_text(json.dumps(data))
    test = {"accuracy": 0.75, "accuracy_low": 0.5, "accuracy_high": 0.9, "num_pairs": 8, "agreement": 0.6}
    (folders["R0"] / "eval" / "rationale.json").write_text(json.dumps(test))
    scores = [[-0.5, -0.25], [-0.75, None]]
    proved = [{"id": f"p{i}", "proofs": [{"score": s, "reason": "" if s else "cut"} for s in pair]}
              for i, pair in enumerate(scores)]  # fmt: skip
    leave(folders["proofs"], proved, {"cut": {"count": 2, "first": "p9"}})
    leave(folders["R1-judge"], JUDGED)
    leave(folders["R1-votes"], JUDGED[:4], {"no draw gave a verdict": {"count": 1, "first": "e"}})
    return config, tmp_path, folders


def test_what_is_not_done_has_no_numbers(half_done):
    config, workdir, _ = half_done
    found = gram_r2.summarise(config, workdir)
    assert found["prover"] == {
        "num_rows": 9, "num_train": 8, "dropped": {"too long": {"count": 1, "first": "x-3"}}
    }  # fmt: skip
    assert found["proofs"] == {"num_rows": 4, "kept": 2, "kept_share": 0.5, "mean_score": pytest.approx(-0.5),
                               "dropped": {"cut": {"count": 2, "first": "p9"}}}  # fmt: skip
    first, second = found["rounds"]
    assert (first["round"], first["test_accuracy"], first["test"]["num_pairs"]) == (0, 0.75, 8)
    assert second["round"] == 1 and not {"test", "test_accuracy", "kept_share", "pseudo_label_precision"} & set(second)
    assert "final" not in found and found["rationales"] == []


def test_the_numbers_of_a_round_are_those_of_its_rows(half_done):
    """Three pairs have gold and a label, two of them right; the first draw: one of three; a tie counts nowhere."""
    config, workdir, folders = half_done
    kept = [{**row, "rationale": "because", "prompt": "q", "responses": ["x", "y"]} for row in JUDGED[:2]]
    leave(folders["R1-proofs"], kept, {"cut": {"count": 2, "first": "c"}})
    leave(folders["R1-rules"], kept[:1], {"surplus of one side": {"count": 1, "first": "b"}})
    found = gram_r2.summarise(config, workdir)
    second = found["rounds"][1]
    assert second["num_unlabelled"] == 5
    assert second["pseudo_labels"] == {
        "precision_one_draw": pytest.approx(1 / 3), "precision_vote": pytest.approx(2 / 3), "precision_kept": 1.0,
        "num_gold": 3,
    }  # fmt: skip
    assert (second["pseudo_label_precision"], second["kept_share"], second["share_of_a"]) == (1.0, 0.2, 1.0)
    assert second["vote_histogram"] == {"0": 1, "0.75": 2, "1": 2}
    assert [(f["name"], f["before"], f["after"]) for f in second["filters"]] == [
        ("votes", 5, 4), ("proofs", 4, 2), ("rules", 2, 1)
    ]  # fmt: skip
    (shown,) = found["rationales"]
    assert (shown["round"], shown["id"], shown["gold"], shown["rationale"]) == (1, "a", "A", "because")
    json.dumps(found, allow_nan=False)

    drawn = plots.read(found)
    assert [r.name for r in drawn] == ["R0", "R1"]
    one = drawn[1]
    assert (one.one_draw, one.vote, one.kept, one.num_gold) == (pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0, 3)
    assert (one.kept_share, one.share_of_a, one.num_unlabelled) == (0.2, 1.0, 5)
    assert one.votes == {0.0: 1, 0.75: 2, 1.0: 2} and [f.after for f in one.filters] == [4, 2, 1]
    assert one.filters[0].dropped == (("no draw gave a verdict", 1, "e"),)
    assert (drawn[0].accuracy, drawn[0].low, drawn[0].num_train) == (0.75, 0.5, 8)
    assert drawn[0].dropped == (("too long", 1, "x-3"),)


def test_a_round_that_keeps_nothing_is_reported(half_done):
    config, workdir, folders = half_done
    leave(folders["R1-proofs"], [], {"cut": {"count": 4, "first": "a"}})
    leave(folders["R1-rules"], [])
    second = gram_r2.summarise(config, workdir)["rounds"][1]
    assert (second["kept_share"], second["pseudo_label_precision"], second["share_of_a"]) == (0.0, None, None)
    assert plots.read(gram_r2.summarise(config, workdir))[1].kept_share == 0.0


@pytest.mark.parametrize(
    "setting, value, word",
    [("proving.rules.max_tokens", 7, "config.recipe.rules"), ("prover", "somewhere", "would not be used")],
)
def test_settings_that_no_step_would_use_are_refused(setting, value, word):
    config = flags.load("gram_r2_toy")
    config.recipe.rationale_source = "self" if setting == "prover" else "prover"
    config.recipe.update_from_flattened_dict({setting: value})
    with pytest.raises(UserError, match=word):
        gram_r2.steps(config, Path("anywhere"))
