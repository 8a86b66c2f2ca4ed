"""One text, one score: in the training run, in evaluate, best of n, score, the server, and the exported torch model."""

import json

import numpy as np
import pytest

from gramjax import cli
from gramjax.data.recipes import word_translation as words
from tests.serving.live_server import in_process

CLOSE = 2e-5
"""float32, in batches and programs of different shapes."""
ROWS = 12


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(file, rows) of some of the pairs that the tiny runs were judged on, and the same as lists of responses."""
    folder = tmp_path_factory.mktemp("one_score")
    rows = words.rows("valid", 40)[:ROWS]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lists = [{"id": r["id"], "prompt": r["prompt"], "responses": [r["chosen"], r["rejected"], r["chosen"] + " x"]}
             for r in rows]  # fmt: skip
    (folder / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lists))
    return folder, rows


def job(verb, run, data, workdir, *more, config=""):
    given = (f"--config.model.path={run}", f"--config.data.path={data}", f"--workdir={workdir}")
    assert cli.main([verb, f"--config={config or verb}", *given, *more]) == 0
    return workdir


def judged(folder, rows):
    """The rows of an evaluation, by the order of `rows`."""
    found = {row["id"]: row for row in lines(folder / "eval" / "preference.rows.jsonl")}
    return [found[row["id"]] for row in rows]


@pytest.fixture(scope="module")
def exported(tiny_scalar, tiny_judge, tmp_path_factory):
    """Hugging Face folders of both models, from `gramjax convert`."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("exported")
    for name, run in (("scalar", tiny_scalar), ("judge", tiny_judge)):
        assert cli.main(["convert", str(run), str(folder / name)]) == 0
    return folder


def ids_of(run, render):
    """Token ids of a rendering under the settings of a run."""
    from gramjax.core import config as configs
    from gramjax.data import text, tokenizer

    saved = json.loads((run / "config.json").read_text())
    section = configs.section(saved["data"], configs.DataSection, "data")
    return render(text.Renderer(tokenizer.load(str(run / "tokenizer")), section))


def test_a_scalar_model_has_one_score_everywhere(tiny_scalar, pairs, tmp_path):
    folder, rows = pairs
    trained = judged(tiny_scalar, rows)
    wanted = [(row["score_chosen"], row["score_rejected"]) for row in trained]
    assert np.std(wanted) > 1e-3
    pairs_file = folder / "pairs.jsonl"
    other_batches = "--config.evals.preference.batch_size=3"
    evaluated = judged(job("evaluate", tiny_scalar, pairs_file, tmp_path / "e", other_batches), rows)
    assert [(r["score_chosen"], r["score_rejected"]) for r in evaluated] == [
        pytest.approx(w, abs=CLOSE) for w in wanted
    ]
    scored = lines(job("score", tiny_scalar, pairs_file, tmp_path / "s") / "rows.jsonl")
    assert [(r["score_chosen"], r["score_rejected"]) for r in scored] == [pytest.approx(w, abs=CLOSE) for w in wanted]
    ranked = lines(
        job("evaluate", tiny_scalar, folder / "lists.jsonl", tmp_path / "b", config="best_of_n")
        / "eval" / "best_of_n.rows.jsonl"
    )  # fmt: skip
    in_lists = lines(job("score", tiny_scalar, folder / "lists.jsonl", tmp_path / "l") / "rows.jsonl")
    assert [r["scores"][:2] for r in in_lists] == [pytest.approx(list(w), abs=CLOSE) for w in wanted]
    for row, found in zip(in_lists, ranked, strict=True):
        assert found["ranking"][0] == int(np.argmax(row["scores"]))
    client, service = in_process(tiny_scalar)
    with client:
        for row, want in zip(rows, wanted, strict=True):
            body = {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]}
            assert client.post("/v1/compare", json=body).json()["scores"] == pytest.approx(list(want), abs=CLOSE)
    assert service.model.kind == "score"


def test_the_exported_scalar_model_gives_that_score(tiny_scalar, pairs, exported):
    import torch
    from transformers import AutoModelForSequenceClassification

    _, rows = pairs
    model = AutoModelForSequenceClassification.from_pretrained(exported / "scalar").eval()
    for row, found in zip(rows, judged(tiny_scalar, rows), strict=True):
        both = ids_of(tiny_scalar, lambda r, row=row: r.completion_pair(row["prompt"], row["chosen"], row["rejected"]))
        for (ids, _), name in zip(both, ("score_chosen", "score_rejected"), strict=True):
            with torch.no_grad():
                score = float(model(torch.tensor([ids])).logits[0, 0])
            assert score == pytest.approx(found[name], abs=CLOSE)


def test_a_judge_has_one_verdict_everywhere(tiny_judge, pairs, tmp_path):
    folder, rows = pairs
    trained = judged(tiny_judge, rows)
    wanted = [row["probability"] for row in trained]
    assert np.std([row["margin_first"] for row in trained]) > 1e-3
    evaluated = judged(job("evaluate", tiny_judge, folder / "pairs.jsonl", tmp_path / "e",
                           "--config.evals.preference.share=False"), rows)  # fmt: skip
    scored = lines(job("score", tiny_judge, folder / "pairs.jsonl", tmp_path / "s") / "rows.jsonl")
    for name in ("p_first", "p_second", "margin_first", "margin_second", "probability"):
        assert [r[name] for r in evaluated] == pytest.approx([r[name] for r in trained], abs=CLOSE), name
    assert [r["probability"] for r in scored] == pytest.approx(wanted, abs=CLOSE)
    assert [r["probability_first"] for r in scored] == pytest.approx([r["p_first"] for r in trained], abs=CLOSE)
    client, service = in_process(tiny_judge)
    with client:
        for row, found in zip(rows, trained, strict=True):
            body = {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]}
            said = client.post("/v1/compare", json=body).json()
            assert said["p_a"] == pytest.approx(found["probability"], abs=CLOSE)
            assert said["pairs"][0]["p_a_shown_first"] == pytest.approx(found["p_first"], abs=CLOSE)
            assert said["judge_calls"] == 2
    assert service.model.kind == "judge"


def test_the_exported_judge_gives_that_verdict(tiny_judge, pairs, exported):
    import torch
    from transformers import AutoModelForCausalLM

    _, rows = pairs
    model = AutoModelForCausalLM.from_pretrained(exported / "judge").eval()
    verdicts = list(ids_of(tiny_judge, lambda r: r.verdict_ids))
    for row, found in zip(rows, judged(tiny_judge, rows), strict=True):
        orders = ((row["chosen"], row["rejected"], "p_first"), (row["rejected"], row["chosen"], "p_second"))
        for first, second, name in orders:
            ids = ids_of(tiny_judge, lambda r, row=row, f=first, s=second: r.judge(row["prompt"], f, s))
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1, verdicts]
            assert float(torch.softmax(logits, -1)[0]) == pytest.approx(found[name], abs=CLOSE)
