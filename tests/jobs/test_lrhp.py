"""LRHP from the command line, in a world of hidden criteria as text: train, judge, embed, select, predict margins."""

import json
import shutil

import numpy as np
import pytest

from gramjax import cli
from gramjax.data import vectors
from gramjax.data.recipes import hidden_criteria as world

pytestmark = pytest.mark.optimised

LENGTH = f"--config.data.max_length={world.MAX_LENGTH}"
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4,
         "head_dim": 16, "init_scale": 0.08}  # fmt: skip
TRAINED = ("--config.optim.betas=(0.9,0.98)", "--config.train.batch_size=48", "--config.train.remat=none",
           "--config.train.scan_layers=False",
           "--config.log.tensorboard=False", "--config.log.report=False", LENGTH)  # fmt: skip
POOL, RATED = "recipe:hidden_criteria:train:800:7", "recipe:hidden_criteria:train:400:9"


def run(*argv):
    """What the console script does, in this process; the exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.run([str(word) for word in argv])
    return stopped.value.code


def rows(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]


def summary(folder):
    return json.loads((folder / "summary.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A run of 180 steps: it has learned the world in part."""
    folder = tmp_path_factory.mktemp("lrhp") / "run"
    assert run("train", "--config=lrhp", f"--workdir={folder}", "--config.tokenizer.path=recipe:hidden_criteria",
               "--config.data.train=('recipe:hidden_criteria:train',)",
               "--config.data.valid=('recipe:hidden_criteria:valid',)", "--config.train.steps=180",
               "--config.optim.lr=3e-3", *TRAINED,
               *(f"--config.model.arch.{name}={size}" for name, size in SIZES.items())) == 0  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def embed(encoder):
    def job(workdir, path, *settings):
        return run("annotate", "--config=embed_preferences", f"--config.model.path={encoder}", LENGTH,
                   f"--config.data.path={path}", f"--workdir={workdir}", *settings)  # fmt: skip

    return job


@pytest.fixture(scope="module")
def pool(embed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool") / "pool"
    assert embed(folder, POOL) == 0
    return folder


def test_a_run_is_judged_again_by_its_order_logit(encoder, tmp_path, capsys):
    trained = json.loads((encoder / "eval" / "preference_order.json").read_text())
    assert trained["accuracy"] >= 0.65 and trained["order_correlation"] >= 0.8
    assert run("evaluate", "--config=evaluate_order", f"--config.model.path={encoder}", f"--workdir={tmp_path}",
               "--config.data.path=recipe:hidden_criteria:valid",
               "--config.evals.preference_order.batch_size=7") == 0  # fmt: skip
    again = json.loads((tmp_path / "eval" / "preference_order.json").read_text())
    assert again["accuracy"] == trained["accuracy"] and again["inherited"]["data.max_length"] == world.MAX_LENGTH
    assert again["margin"] == pytest.approx(trained["margin"], rel=1e-4)
    assert "order_correlation" in capsys.readouterr().out


def test_vectors_stand_beside_the_rows_with_a_map_and_what_they_are_like(pool):
    made, found = rows(pool), vectors.read(pool)
    assert [row["id"] for row in made] == list(found.ids) and found.matrix.shape == (800, 64)
    direction = found.order_direction
    np.testing.assert_allclose(found.matrix @ direction, [row["order_first"] for row in made], rtol=1e-3, atol=1e-4)
    halves = [(row["order_first"] - row["order_second"]) / 2 for row in made]
    np.testing.assert_allclose([row["order_margin"] for row in made], halves, atol=1e-6)
    facts = summary(pool)
    assert facts["order_accuracy"] == np.mean(np.array(halves) > 0) and facts["effective_rank"] > 2
    assert facts["subset_probe_accuracy"] > facts["largest_subset_share"] + 0.2, "told, though never named"
    assert (pool / "plots" / "map.png").stat().st_size > 5000
    assert len((pool / "plots" / "map.csv").read_text().splitlines()) == 801


def test_after_a_kill_rows_and_vectors_are_those_of_an_uninterrupted_run(pool, embed, tmp_path):
    """The kill came after a vector, in the middle of its row."""
    folder = tmp_path / "run"
    shutil.copytree(pool, folder)
    for name in ("summary.json", "DONE", vectors.FILE, vectors.IDS):
        (folder / name).unlink()
    whole = (pool / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "rows.jsonl").write_bytes(b"".join(whole[:300]) + whole[300][:20])
    with vectors.VectorLog(folder, 0) as log:
        for vector in vectors.read(pool).matrix[:301]:
            log.add(vector)
    assert embed(folder, POOL) == 0
    assert [row["id"] for row in rows(folder)] == [row["id"] for row in rows(pool)]
    np.testing.assert_allclose(vectors.read(folder).matrix, vectors.read(pool).matrix, atol=1e-4)
    assert np.array_equal(vectors.read(folder).order_direction, vectors.read(pool).order_direction)


def test_a_pair_without_a_label_is_seen_in_the_order_that_the_model_prefers(pool, embed, tmp_path):
    path = tmp_path / "unlabelled.jsonl"
    turned = lambda i, row: [row["rejected"], row["chosen"]][:: 1 if i % 2 else -1]  # noqa: E731
    known = rows(pool)[:40]
    pairs = [{"id": row["id"], "prompt": row["prompt"], "responses": turned(i, row)} for i, row in enumerate(known)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert embed(tmp_path / "run", path) == 0
    known, found = vectors.read(pool).matrix, vectors.read(tmp_path / "run").matrix
    for i, (before, row) in enumerate(zip(rows(pool), rows(tmp_path / "run"))):
        chosen = row["responses"][0 if row["order_label"] == "A" else 1]
        assert row["order_margin"] >= 0 and (chosen == before["chosen"]) == (before["order_margin"] > 0)
        if before["order_margin"] > 0:
            np.testing.assert_allclose(found[i], known[i], atol=1e-4)


@pytest.mark.parametrize("kind,width", [("hidden_difference", 64), ("prompt", 64)])
def test_vectors_of_the_baselines(embed, tmp_path, kind, width):
    assert embed(tmp_path / "run", "recipe:hidden_criteria:valid:40", f"--config.annotator.kind={kind}") == 0
    found = vectors.read(tmp_path / "run")
    assert found.matrix.shape == (40, width) and np.isfinite(found.matrix).all()
    by_prompt = {}
    for row, vector in zip(rows(tmp_path / "run"), found.matrix):
        by_prompt.setdefault(row["prompt"], []).append(vector)
    spread = max(np.ptp(np.array(group), axis=0).max() for group in by_prompt.values())
    assert (spread < 1e-4) == (kind == "prompt")


def test_selected_rows_follow_the_criterion_of_the_target_set(pool, embed, tmp_path):
    assert embed(tmp_path / "target", "recipe:hidden_criteria:speed") == 0
    select = ("select_data", "--config=select_preferences", f"--config.data.path={pool / 'rows.jsonl'}")
    named = (f"--config.selection.vectors={pool}", f"--config.selection.target_vectors={tmp_path / 'target'}")
    assert run(*select, *named, "--config.selection.most=80", "--config.selection.scoring=centroid",
               f"--workdir={tmp_path / 'chosen'}") == 0  # fmt: skip
    chosen = rows(tmp_path / "chosen")
    assert len(chosen) == 80 and np.mean([row["subset"] == "speed" for row in chosen]) >= 0.45
    assert run(*select, *named, "--config.selection.mode=adaptive", f"--workdir={tmp_path / 'adaptive'}") == 0
    assert 40 <= len(rows(tmp_path / "adaptive")) < 800
    assert run(*select, *named[:1], "--config.selection.most=80", f"--workdir={tmp_path / 'none'}") == 2


def predict(encoder, workdir, method, *settings):
    return run("annotate", "--config=predict_margins", f"--config.model.path={encoder}", LENGTH, f"--workdir={workdir}",
               f"--config.annotator.method={method}", "--config.data.path=recipe:hidden_criteria:valid",
               *settings)  # fmt: skip


def test_margins_by_probe_logit_and_constant(encoder, tmp_path):
    for method in ("ridge", "order_logit", "constant"):
        assert predict(encoder, tmp_path / method, method, f"--config.annotator.labelled={RATED}") == 0
    ridge, logit, constant = (summary(tmp_path / name) for name in ("ridge", "order_logit", "constant"))
    assert ridge["spearman"] >= 0.3 and logit["spearman"] >= 0.2 and abs(constant["spearman"]) < 0.15
    assert ridge["mse"] < constant["mse"] and ridge["larger_of_two"] > 0.6 and ridge["num_margins"] == 400
    for row in rows(tmp_path / "ridge"):
        assert row["margin"] == max(row["predicted_margin"], 0.0) and row["true_margin"] >= 1
    assert predict(encoder, tmp_path / "scaleless", "order_logit") == 0
    same = [[row["predicted_margin"] for row in rows(tmp_path / name)] for name in ("order_logit", "scaleless")]
    assert np.corrcoef(*same)[0, 1] == pytest.approx(1), "a line brings the logits to the scale of the margins"


def test_a_margin_head_is_trained_on_the_frozen_encoder_and_read_back(encoder, tmp_path):
    run_folder = tmp_path / "margins"
    assert run("train", "--config=lrhp_margin", f"--config.model.path={encoder}", f"--workdir={run_folder}",
               f"--config.data.train=('{RATED}',)", "--config.train.epochs=10", "--config.optim.lr=3e-3",
               *TRAINED) == 0  # fmt: skip
    known = json.loads((run_folder / "objective.json").read_text())["standardisation"]
    assert set(known["subsets"]) == {"*", *world.CRITERIA} and min(known["scales"]) > 0.5
    assert predict(run_folder, tmp_path / "head", "head") == 0
    found = summary(tmp_path / "head")
    assert found["spearman"] >= 0.25 and set(found["subsets"]) == set(world.CRITERIA)
    assert 0 < np.mean([row["predicted_margin"] for row in rows(tmp_path / "head")]) < 6, "on the scale of the data"


@pytest.mark.parametrize(
    "command,words",
    [
        (("convert", "{run}", "{tmp}/hf", "--to=hf"), "no class for the head 'preference'"),
        (("annotate", "--config=predict_margins", "--config.model.path={run}", "--config.data.path=" + RATED,
          "--workdir={tmp}/a"), "needs config.annotator.labelled"),
        (("annotate", "--config=predict_margins", "--config.model.path={run}", "--config.data.path=" + RATED,
          "--config.annotator.method=reward_difference", "--workdir={tmp}/b"), "reads the head 'score'"),
        (("annotate", "--config=embed_preferences", "--config.model.path={run}", "--config.data.path=" + RATED,
          "--config.annotator.kind=mean", "--workdir={tmp}/c"), "annotator.kind is 'mean'"),
    ],
)  # fmt: skip
def test_wrong_commands_are_one_line(encoder, tmp_path, capsys, command, words):
    capsys.readouterr()
    assert run(*(word.format(run=encoder, tmp=tmp_path) for word in command)) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
