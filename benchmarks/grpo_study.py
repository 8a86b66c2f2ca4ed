"""The study of samples on a language model that speaks: GRPO from stories260K, by samples, rewards and offline data.

    python benchmarks/grpo_study.py --data=DATA --out=FOLDER [--json benchmarks/results/grpo_study.json]

DATA holds `stories260k/` (the model of llama2.c and its tokenizer). Each variant is configs/grpo_stories.py with the
overrides below, three seeds; a run that is done is not repeated. Measured on held-out prompts (other names), before and
after: the share of paragraphs that name a tree and end in time, distinct-1 and -2 (different words and word pairs over
all of them), tokens, and the KL divergence to the start, nats per token (k1 over own samples).

`preference` learns from a Bradley-Terry model that this program trains first, on pairs of the start's own paragraphs in
which the one with more words of joy is preferred; the words themselves are the gold that the model stands for.
"""

import argparse
import dataclasses
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure

VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "positive": ("--config.grpo.samples=positive",),
    "negative": ("--config.grpo.samples=negative",),
    "relative_length": ("--config.reward.relative_length=True", "--config.reward.relative_length_budget=32.0"),
    "offline": ("--config.grpo.offline_fraction=0.0625", "--config.grpo.offline_per_prompt=2"),
    "preference": (),
}
SEEDS = (0, 1, 2)
JOY = ("happy", "smiled", "love", "loved", "laughed", "fun", "friend", "friends", "play", "played", "nice", "hugged")
PROMPTS, DRAWS = 128, 4
CRITERIA = {"tree": "names a tree and ends within 60 tokens", "joy": "words of joy in a paragraph"}


def joy(text: str) -> int:
    """Words of joy in a text."""
    return sum(word in JOY for word in re.findall(r"\w+", text.lower()))


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them."""
    grams = [tuple(words[i : i + n]) for t in texts if (words := t.lower().split()) for i in range(len(words) - n + 1)]
    return len(set(grams)) / max(len(grams), 1)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where things are."""

    weights: str
    tokenizer: str
    out: Path

    def start(self) -> list[str]:
        """Flags that name the start."""
        return [f"--config.model.path={self.weights}", f"--config.tokenizer.path={self.tokenizer}"]


def sampler(path: str, tokenizer: str) -> Any:
    """A model opened for drawing, as the training draws."""
    from gramjax.core import config as configs
    from gramjax.training import sampling

    made = configs.for_rows("generate", ("model", "tokenizer", "data", "mesh", "sampling", "generation"))
    made.model.path, made.tokenizer.path = path, tokenizer
    made.generation.slots, made.generation.steps_per_call, made.generation.prefill_rows = 128, 16, 8
    return sampling.open_sampler(made)


def draw(opened: Any, split: str, count: int, draws: int, seed: int) -> list[tuple[str, Any]]:
    """(prompt, completion) of prompts of a split."""
    from gramjax.core.config import SamplingSection
    from gramjax.data.recipes import story_beginnings
    from gramjax.generation.request import Request

    rows = story_beginnings.rows(split, count)
    sampling = SamplingSection(max_tokens=64, n=draws, stop=("\n",))
    requests = [
        Request(opened.renderer.prompt(row["prompt"]), row["id"], sampling, seed, opened.end_ids, columns=row)
        for row in rows
    ]
    return [(done.request.columns["prompt"], done) for done in opened.generate(requests)]


def judged(place: Place, path: str, seed: int) -> dict[str, float]:
    """What a model writes for held-out prompts."""
    import numpy as np

    from gramjax.generation.scoring import completion_logprobs
    from gramjax.rewards.contains import has

    opened = sampler(path, place.tokenizer)
    found = draw(opened, "valid", PROMPTS, DRAWS, 1000 + seed)
    texts = [done.text for _, done in found]
    first = sampler(place.weights, place.tokenizer)
    start = completion_logprobs(first, [d.request.tokens for _, d in found], [d.token_ids for _, d in found])
    own = np.array([sum(done.model_logprobs) for _, done in found])
    lengths = [len(done.token_ids) for _, done in found]
    return {
        "tree": float(np.mean([has(done.text, "tree") and len(done.token_ids) <= 60 for _, done in found])),
        "ended": float(np.mean([done.finish_reason == "stop" for _, done in found])),
        "joy": float(np.mean([joy(text) for text in texts])),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "different_texts": len(set(texts)) / len(texts),
        "tokens": float(np.mean(lengths)),
        "kl": float(np.sum(own - start) / np.sum(lengths)),
    }


def reward_model(place: Place) -> Path:
    """A Bradley-Terry model of joy, trained on the start's own paragraphs."""
    folder = place.out / "joy"
    if (folder / "DONE").exists():
        return folder
    drawn = draw(sampler(place.weights, place.tokenizer), "train", 256, 8, 7)
    by_prompt: dict[str, list[str]] = {}
    for prompt, done in drawn:
        by_prompt.setdefault(prompt, []).append(done.text)
    pick, rows = random.Random(0), []
    for prompt, texts in by_prompt.items():
        pairs = [(a, b) for a in texts for b in texts if joy(a) > joy(b) and b.strip()]
        rows += [{"prompt": prompt, "chosen": a, "rejected": b} for a, b in pick.sample(pairs, min(8, len(pairs)))]
    path = place.out / "joy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train("bradley_terry", folder, [
        *place.start(), f"--config.data.train=('{path}',)", "--config.data.max_length=128", "--config.optim.lr=1e-3",
        "--config.train.epochs=2", "--config.train.batch_size=32", "--config.train.remat=none",
    ])  # fmt: skip
    return folder


def solutions(place: Place) -> Path:
    """Right paragraphs for training prompts, of the first run with all samples: the offline data."""
    from pyarrow import parquet

    from gramjax.data.recipes import story_beginnings

    known: dict[str, list[str]] = {}
    for table in sorted((place.out / "all-0" / "samples").glob("*.parquet")):
        for row in parquet.read_table(table).to_pylist():
            if row["correct"]:
                known.setdefault(row["prompt"], []).append(row["completion"] + "\n")
    spare = [text for texts in known.values() for text in texts]
    pick = random.Random(0)
    rows = [{**row, "solutions": (known.get(row["prompt"]) or pick.sample(spare, 2))[:2]}
            for row in story_beginnings.rows("train")]  # fmt: skip
    path = place.out / "solved.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(config: str, folder: Path, flags: Sequence[str]) -> None:
    """One training in this process."""
    from gramjax import cli

    code = cli.main(["train", f"--config={config}", f"--workdir={folder}", *flags])
    if code:
        raise SystemExit(f"{folder}: exit code {code}")


PREFERENCE = '''
from gramjax.core import config as configs, flags
from gramjax.rewards import preference

def get_config():
    config = flags.load("grpo_stories")
    repetition = config.rewards.repetition
    config.rewards = {{"preference": configs.as_config(preference.Config()), "repetition": repetition}}
    config.rewards.preference.path = {path!r}
    config.rewards.preference.batch_size = 64
    return config
'''


def run(place: Place, variant: str, seed: int) -> dict[str, Any]:
    """One run, what it writes for held-out prompts, and its curve."""
    from gramjax.core.writer import read_metrics

    folder = place.out / f"{variant}-{seed}"
    config, flags = "grpo_stories", [*place.start(), *VARIANTS[variant], f"--config.seed={seed}"]
    if variant == "preference":
        config = str(place.out / "preference.py")
        Path(config).write_text(PREFERENCE.format(path=str(reward_model(place))))
    if variant == "offline":
        flags.append(f"--config.data.train=('{solutions(place)}',)")
    train(config, folder, flags)
    names = ("reward", "rewards/contains/mean", "rewards/preference/mean", "completions/mean_length", "entropy", "kl",
             "frac_reward_zero_std", "offline/injected")  # fmt: skip
    entries = [entry for entry in read_metrics(folder / "metrics.jsonl") if "reward" in entry]
    curves = {name: [round(e[name], 4) for e in entries] for name in names if name in entries[0]}
    return {"variant": variant, "seed": seed, "after": judged(place, str(folder), seed), "curves": curves}


def figure(results: dict[str, Any], path: Path) -> None:
    """The share of right answers and the length by step, a line for each run."""
    from gramjax.plots import style

    colours = (style.BLUE, style.GREEN, style.RED, style.PURPLE, style.ORANGE, style.INK)

    def lines(axes: Any) -> None:
        for axis, name, title in (
            (axes[0], "rewards/contains/mean", "A tree, in time"),
            (axes[1], "completions/mean_length", "Tokens of a paragraph"),
        ):
            for variant, colour in zip(VARIANTS, colours):
                own = [r["curves"][name] for r in results["runs"] if r["variant"] == variant and name in r["curves"]]
                for number, values in enumerate(own):
                    label = variant.replace("_", " ") if number == 0 else None
                    axis.plot(range(1, len(values) + 1), values, color=colour, alpha=0.8, label=label)
            axis.set_title(title)
            axis.set_xlabel("Optimiser step")
        axes[0].legend(loc="best")

    style.figure(lines, path, (9.2, 3.4), nrows=1, ncols=2)


def table(results: dict[str, Any]) -> str:
    """What the models write for held-out prompts, mean and standard deviation over seeds, as markdown."""
    import numpy as np

    names = ("tree", "joy", "tokens", "distinct_1", "distinct_2", "different_texts", "kl")
    out = [f"| learned from | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    before = " | ".join(f"{results['before'][name]:.3f}" for name in names[:-1])
    out.append(f"| (start) | | {before} | 0 |")
    for variant in VARIANTS:
        runs = [run["after"] for run in results["runs"] if run["variant"] == variant]
        if runs:
            cells = [f"{np.mean(v):.3f} ± {np.std(v):.3f}" for v in ([run[name] for run in runs] for name in names)]
            out.append(f"| {variant.replace('_', ' ')} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join(out)


def main() -> None:
    """All variants, all seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder that holds stories260k/")
    parser.add_argument("--out", required=True, help="folder for the runs")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--json", default="", help="where the results are kept")
    parser.add_argument("--figure", default="", help="only draw the curves of --json here, and print the table")
    given = parser.parse_args()
    if given.figure:
        results = json.loads(Path(given.json).read_text())
        figure(results, Path(given.figure))
        print(table(results))
        return
    model = Path(given.data) / "stories260k"
    place = Place(str(model / "stories260K.bin"), str(model / "tok512.bin"), Path(given.out).resolve())
    place.out.mkdir(parents=True, exist_ok=True)
    kept = Path(given.json) if given.json else place.out / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {
        "command": "python benchmarks/grpo_study.py --data=DATA --out=FOLDER", **measure.machine(),
        "criteria": CRITERIA, "prompts": PROMPTS, "draws": DRAWS, "runs": [],
    }  # fmt: skip
    if "before" not in results:
        results["before"] = judged(place, place.weights, 0)
    known = {(r["variant"], r["seed"]) for r in results["runs"]}
    for seed in given.seeds:
        for variant in given.variants:
            if (variant, seed) not in known:
                results["runs"].append(run(place, variant, seed))
                measure.write(str(kept), results)


if __name__ == "__main__":
    main()
