"""F25: the best checkpoints stay beside the newest; an evaluation that gave NaN or nothing is the worst there is."""

import json
import math

import jax.numpy as jnp
import pytest

from gramjax import cli
from gramjax.checkpoint import best as bests
from gramjax.checkpoint import state as states
from gramjax.checkpoint.source import open_source
from gramjax.core import checks, config, writer
from gramjax.core.errors import UserError

NAN = math.nan
ACCURACY = "eval/preference/accuracy"


def write_run(folder, rule, values):
    """A run folder whose steps 1, 2, ... were evaluated and saved as a training does it; the steps asked to be kept."""
    settings = {"keep_best": rule.count, "best_metric": rule.metric, "best_mode": rule.mode}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"train": settings}))
    best, worth = bests.Best(rule), []
    metrics = folder / "metrics.jsonl"
    with metrics.open("a") as log, states.Checkpoints(folder, keep=1, beside=best.among) as saved:
        for step, value in enumerate(values, 1):
            results = {"preference": {"num_pairs": 8} if value is None else {"num_pairs": 8, "accuracy": value}}
            if best.note(step, results, saved.coming()):
                worth.append(step)
            log.write(json.dumps({"step": step, ACCURACY: writer.json_safe(value)}) + "\n")
            saved.save(step, {"params": {"w": jnp.full((4, 4), step, jnp.float32)}, "step": jnp.int32(step)}, {}, {})
    return worth


def test_a_metric_that_is_nan_or_missing_is_the_worst_and_the_true_best_stays(tmp_path, capsys):
    """The sequence after which Orbax keeps steps 4 and 5, and calls 5 the best."""
    run = tmp_path / "run"
    assert write_run(run, bests.Rule(2, ACCURACY, "max"), [0.9, NAN, 0.5, 0.7, None]) == [1, 3, 4]
    assert states.steps_of(run) == [1, 4, 5], "the best two and the newest"
    assert bests.step_of(run) == 1

    assert cli.main(["checkpoint", "list", str(run), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["best_by"] == {"count": 2, "metric": ACCURACY, "mode": "max"}
    assert [(s["step"], s["metric"], s["best"]) for s in listed["steps"]] == [
        (1, 0.9, True), (4, 0.7, True), (5, None, False)]  # fmt: skip
    assert cli.main(["checkpoint", "list", str(run)]) == 0
    assert f"{ACCURACY} 0.9  best" in capsys.readouterr().out

    assert cli.main(["checkpoint", "prune", str(run), "--keep=1", "--keep_best=1"]) == 0
    assert states.steps_of(run) == [1, 5]
    assert cli.main(["checkpoint", "prune", str(run), "--keep=1"]) == 0
    assert states.steps_of(run) == [1, 5], "as many of the best stay as the run was told to keep"

    with pytest.raises(UserError, match="give one of them"):
        open_source(f"{run}@best", step=5)
    with pytest.raises(UserError, match="it has no checkpoints"):
        open_source(f"{tmp_path / 'elsewhere'}@best")


def test_the_best_is_known_after_a_restart_whatever_the_lines_after_it_say(tmp_path):
    """What was logged after the step that a run goes on from is not of its states; infinities are no small numbers."""
    rule = bests.Rule(1, ACCURACY, "min")
    best = bests.Best(rule)
    entries = [{"step": step, ACCURACY: value} for step, value in enumerate([0.4, 0.3, None, 0.1], 1)]
    best.goes_on([*entries, {"step": 3, "loss": 0.0}], last=3)
    assert best.among([1, 2, 3, 4]) == [2]
    assert not best.note(4, {"preference": {"accuracy": -math.inf}}, [2]) and best.among([2, 4]) == [2]
    assert not best.note(5, {"preference": {"accuracy": 0.3}}, [2]), "of equals the earlier is the better"
    assert best.note(6, {"preference": {"accuracy": 0.2}}, [2]) and best.among([2, 6]) == [6]
    with pytest.raises(UserError, match="no number of this run's evaluations; did you mean eval/preference/accuracy"):
        bests.Best(bests.Rule(1, "eval/preference/acuracy", "max")).note(2, {"preference": {"accuracy": 1.0}}, [])
    assert bests.split(tmp_path / "run@best") == (tmp_path / "run", True)
    (tmp_path / "run@best").mkdir()
    assert bests.split(tmp_path / "run@best") == (tmp_path / "run@best", False), "a folder of that very name"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"best_metric": ACCURACY}, "config.train.keep_best is 0: no best checkpoint is kept"),
        ({"best_mode": "min"}, "config.train.keep_best is 0"),
        ({"keep_best": 1, "best_metric": ACCURACY}, "config.train.eval_every is 0"),
        ({"keep_best": 1, "best_metric": ACCURACY, "eval_every": 2, "evaluate": False}, "nothing is evaluated"),
        ({"keep_best": 1, "eval_every": 2}, "config.train.best_metric is empty; give"),
        ({"keep_best": 1, "eval_every": 2, "best_metric": "loss"}, "eval/preference/KEY"),
        ({"keep_best": 1, "eval_every": 2, "best_metric": "eval/math/accuracy"}, "eval/preference/KEY"),
        ({"keep_best": -1}, "at least 0"),
        ({"keep_best": 1, "eval_every": 2, "best_metric": ACCURACY, "best_mode": "large"}, "one of max, min"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, said):
    made = config.defaults("generative_preference", evals=("preference",))
    for name, value in settings.items():
        made.train[name] = value
    with pytest.raises(UserError, match=said):
        checks.check(made)
