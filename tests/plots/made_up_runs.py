"""A run folder as a job leaves it, with made-up numbers of a plausible shape."""

import json
import math

import numpy as np

from gramjax.core import judgements, statistics


def judged(count=600, seed=0, quality=1.6, bias=0.5, scalar=False):
    """Rows of a fairly good, slightly over-confident judge that leans towards the first answer and likes length."""
    generator = np.random.default_rng(seed)
    longer = generator.normal(0, 0.4, count).clip(-0.9, 0.9)
    margin = generator.normal(quality, 2.0, count) + 1.2 * longer
    first, second = margin + generator.normal(bias, 0.8, count), -margin + generator.normal(bias, 0.8, count)
    pair = statistics.margin_score(first, second)
    if scalar:
        pair = statistics.margin_score(margin, -margin)
    rows = []
    for i in range(count):
        verdict = int(statistics.verdicts(pair.score[i]))
        chosen_length = 200
        rejected_length = round(200 * (1 - longer[i])) if longer[i] > 0 else round(200 / (1 + longer[i]))
        rows.append(
            {
                "id": f"pair-{i}",
                "subset": ("chat", "safety", "reasoning")[i % 3],
                "prompt_length": 80,
                "chosen_length": chosen_length,
                "rejected_length": rejected_length,
                "order": "none" if scalar else "both",
                "score_chosen": float(margin[i] if scalar else pair.score[i]),
                "score_rejected": float(0.0 if scalar else 1 - pair.score[i]),
                "margin": float(pair.margin[i]),
                "margin_first": None if scalar else float(first[i]),
                "margin_second": None if scalar else float(second[i]),
                "p_first": None if scalar else float(pair.p_first[i]),
                "p_second": None if scalar else float(pair.p_second[i]),
                "probability": float(pair.score[i]),
                "log_probability": float(pair.log_score[i]),
                "consistent": None if scalar else bool(pair.consistent[i]),
                "correct": verdict > 0,
                "tie": verdict == 0,
            }
        )
    return rows


def entries(steps=400, seed=0, every=2):
    """Log events with a falling loss and two evaluations."""
    generator = np.random.default_rng(seed)
    out = []
    for step in range(every, steps + 1, every):
        part = step / steps
        out.append(
            {
                "step": step,
                "time": 1.7e9 + step,
                "loss": 0.25 + 0.6 * math.exp(-4 * part) + float(generator.normal(0, 0.04)),
                "accuracy": 0.5 + 0.42 * (1 - math.exp(-4 * part)) + float(generator.normal(0, 0.03)),
                "learning_rate": 1e-3 * min(part / 0.1, 0.5 * (1 + math.cos(math.pi * part))),
                "grad_norm": 1.0,
                "num_tokens": 2000.0 * step,
                "epoch": part,
                "perf/step_time": 0.1,
                "perf/tokens_per_sec_per_device": 20000 + float(generator.normal(0, 900)),
            }
        )
        if step % (steps // 2) == 0:
            out.append({"step": step, "time": 1.7e9 + step, "eval/preference/accuracy": 0.6 + 0.25 * part})
    return out


def write_run(folder, rows, log, name="quickstart"):
    """The files of a finished run."""
    (folder / "eval").mkdir(parents=True)
    results = dict(judgements.summarise(rows, bootstrap_samples=200))
    results |= {"num_skipped": 2, "num_shortened": 3, "skipped": {"empty chosen": {"count": 2, "first": "pair-900"}}}
    dump = lambda path, value: (folder / path).write_text(json.dumps(value), "utf-8")  # noqa: E731
    dump("eval/preference.json", results)
    (folder / "eval/preference.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), "utf-8")
    objective = {"name": "generative_preference", "label_smoothing": 0.05, "smoothing_convention": "flip"}
    dump("config.json", {"objective": objective | {"stage": "finetune"}, "seed": 0, "data": {"train": ["recipe:x"]}})
    dump("overrides.json", {"train.steps": 400, "optim.lr": 0.001})
    command = ["gramjax", "train", f"--config={name}", f"--workdir={folder}", "--config.train.steps=400"]
    devices = {"backend": "cpu", "count": 1, "kind": "cpu", "processes": 1, "memory_gib": None}
    versions = {"jax": "0.10.2", "flax": "0.12.8"}
    dump("env.json", {"gramjax": "0.1.0", "commit": "abc", "python": "3.11", "system": "Linux x86_64", "cpus": 2,
                      "command": command, "devices": devices, "versions": versions})  # fmt: skip
    dropped = {"longer than max_length 256": [12, "row-17"], "tie": [3, "row-4"]}
    dump("data.json", {"rows": 2000, "examples": 1985, "dropped": dropped})
    (folder / "DONE").write_text("")
    return folder
