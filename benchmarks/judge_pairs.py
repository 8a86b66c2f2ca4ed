"""Judging real pairs in both orders: gramjax against transformers + torch, interleaved in one run.

    GRAMJAX_DATA=FOLDER python benchmarks/judge_pairs.py [--json benchmarks/results/judge_pairs.json]

Pairs: LLMBar natural and PandaLM, as the judge's own instruction renders them, at most LENGTH tokens of a byte-level
BPE trained on them. Model: vocabulary 8192, width 512, 8 layers, 8 heads, 4 kv heads, mlp 1408, random weights,
float32, the same in every side: gramjax writes them, torch reads them. A step judges all pairs; its value is the mean
score, which must agree.

    gramjax      RewardModel.compare: rows by length, the beginning that both orders share is computed once
    apart        the same without sharing
    torch_one    one pair a batch, both orders, logits of every position: how GRAM's released evaluation goes
    torch_batch  sorted by length, padded batches of BATCH sequences, logits of the last position only
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measure

VOCABULARY, WIDTH, LAYERS, HEADS, KV_HEADS, MLP = 8192, 512, 8, 8, 4, 1408
LENGTH, BATCH = 768, 8
SIDES = ("gramjax", "apart", "torch_one", "torch_batch")
SETS = ("llmbar/natural", "pandalm/dev")


def prepare(data: Path, work: Path, count: int) -> None:
    """Rows, tokenizer, weights and token ids, the same for every side."""
    import jax

    from gramjax.checkpoint import huggingface
    from gramjax.core import spec
    from gramjax.core.config import DataSection
    from gramjax.data import readers, text, tokenizer
    from gramjax.data.rows import Drop
    from gramjax.models import decoder

    section = DataSection(max_length=LENGTH, on_bad_row="skip")
    rows = [
        row for name in SETS for row in readers.read(str(data / f"{name}.jsonl.gz"), section, "preference").rows[:count]
    ]
    texts = [turn["content"] for row in rows for name in ("prompt", "chosen", "rejected") for turn in row[name]]
    words = tokenizer.train_bpe([*texts, text.JUDGE_PROMPT], VOCABULARY)
    words.save(work / "tokenizer")
    renderer = text.Renderer(words, section)
    kept = []
    for row in rows:
        try:
            pair = [renderer.judge(row["prompt"], *p) for p in _orders(row)]
        except Drop:
            continue
        kept.append({**{name: row[name] for name in ("id", "prompt", "chosen", "rejected")}, "ids": pair})
    config = decoder.Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=KV_HEADS,
        head_dim=WIDTH // HEADS, intermediate_size=MLP, tie_word_embeddings=False, init_scale=0.04,
    )  # fmt: skip
    params = spec.init_params(decoder.specs(config), jax.random.key(0))
    huggingface.save(work / "model", params, config, work / "tokenizer")
    (work / "rows.json").write_text(json.dumps(kept))
    (work / "verdicts.json").write_text(json.dumps(renderer.verdict_ids))


def _orders(row: dict[str, Any]) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (row["chosen"], row["rejected"]), (row["rejected"], row["chosen"])


def gramjax_side(work: Path, share: bool) -> Callable[[], Any]:
    """What evaluation, ranking and serving call."""
    from gramjax.core import config as configs
    from gramjax.core import runtime
    from gramjax.scoring.reading import Layout
    from gramjax.training import scoring

    runtime.start()
    config = configs.for_rows("evaluate", ("model", "tokenizer", "data", "mesh"))
    config.model.path, config.data.max_length = str(work / "model"), LENGTH
    judge = scoring.open_reward_model(config, layout=Layout(2 * BATCH, share=share))
    items = [(row["prompt"], row["chosen"], row["rejected"]) for row in json.loads((work / "rows.json").read_text())]
    return lambda: sum(found.score for found in judge.compare(items)) / len(items)


def torch_side(work: Path, batch_size: int, every_position: bool) -> Callable[[], Any]:
    """transformers: batches of sequences, sorted by length unless one pair is a batch."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(work / "model", dtype=torch.float32).eval()
    rows = json.loads((work / "rows.json").read_text())
    verdicts = torch.tensor(json.loads((work / "verdicts.json").read_text()))
    flat = [(number, order, ids) for number, row in enumerate(rows) for order, ids in enumerate(row["ids"])]
    if not every_position:
        flat.sort(key=lambda item: len(item[2]))

    def step() -> float:
        found = torch.zeros(len(rows), 2)
        with torch.no_grad():
            for start in range(0, len(flat), batch_size):
                part = flat[start : start + batch_size]
                longest = max(len(ids) for _, _, ids in part)
                tokens = torch.zeros(len(part), longest, dtype=torch.long)
                mask = torch.zeros(len(part), longest, dtype=torch.long)
                for b, (_, _, ids) in enumerate(part):
                    tokens[b, : len(ids)], mask[b, : len(ids)] = torch.tensor(ids), 1
                last = mask.sum(1) - 1
                place = torch.arange(len(part))
                if every_position:
                    logits = model(tokens, attention_mask=mask).logits[place, last][:, verdicts]
                else:
                    hidden = model.model(tokens, attention_mask=mask).last_hidden_state[place, last]
                    logits = hidden @ model.lm_head.weight[verdicts].T
                first = torch.softmax(logits, -1)[:, 0]
                for (number, order, _), value in zip(part, first, strict=True):
                    found[number, order] = value
        return float((found[:, 0] + 1 - found[:, 1]).mean() / 2)

    return step


def side(name: str, work: Path) -> Callable[[], Any]:
    """The step of a side."""
    if name.startswith("torch"):
        one = name == "torch_one"
        return torch_side(work, 2 if one else 2 * BATCH, one)
    return gramjax_side(work, name == "gramjax")


def savings(work: Path) -> dict[str, Any]:
    """Tokens with and without shared beginnings, padding aside."""
    import numpy as np

    from gramjax.data.branches import Tokens
    from gramjax.scoring import reading

    rows = json.loads((work / "rows.json").read_text())
    sequences = [Tokens(np.array(ids, np.int32)) for row in rows for ids in row["ids"]]
    groups = [[2 * i, 2 * i + 1] for i in range(len(rows))]
    laid = reading.rows_of(sequences, groups, reading.Layout())
    computed, total = sum(row.length for row in laid), sum(len(s.tokens) for s in sequences)
    return {"pairs": len(rows), "tokens": total, "tokens_computed": computed, "saved": round(1 - computed / total, 3)}


def main() -> None:
    """Compare, or be one side of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("GRAMJAX_DATA", "")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=24, help="pairs of each set")
    parser.add_argument("--json", default="", help="where the results are kept")
    parser.add_argument("--side", default="", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        measure.serve(lambda: side(given.side, given.work))
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(given.data, work, given.count)
        here = measure.machine()
        own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(work / "cache")}
        command = [sys.executable, __file__, "--work", folder, "--side"]
        results = measure.interleave([measure.Side(name, [*command, name], own) for name in SIDES], given.rounds, 1)
        seconds = {name: results[name]["median_s"] for name in SIDES}
        found = {
            "command": " ".join(["python", "benchmarks/judge_pairs.py", *sys.argv[1:]]),
            **here,
            "load_after": measure.machine()["load_before"],
            "shape": {"length": LENGTH, "batch": 2 * BATCH, "width": WIDTH, "layers": LAYERS, "dtype": "float32"},
            "shared_beginnings": savings(work),
            "pairs_per_second": {name: round(savings(work)["pairs"] / s, 2) for name, s in seconds.items()},
            "gramjax_over": {name: round(s / seconds["gramjax"], 2) for name, s in seconds.items()},
            "sides": results,
        }
    measure.write(given.json, found)


if __name__ == "__main__":
    main()
