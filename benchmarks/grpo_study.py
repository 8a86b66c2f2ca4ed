"""The study of samples on a language model that speaks: GRPO from stories260K, by samples, rewards and offline data.

    python benchmarks/grpo_study.py --data=DATA --out=FOLDER [--json benchmarks/results/grpo_study.json]

DATA holds `stories260k/` (the model of llama2.c and its tokenizer). Each variant is configs/grpo_stories.py with the
overrides below, three seeds; a run that is done is not repeated. Measured on held-out prompts (other names), before and
after: the share of paragraphs that name a tree and end in time, distinct-1 and -2 (different words and word pairs over
all of them), tokens, and the KL divergence to the start, nats per token (k1 over own samples).

`warm_*` go on from a warmed start instead, as from a model that was taught by examples first: the start fine-tuned on
its own right paragraphs (those among 32 draws to each training prompt), which is right about a quarter of the time.
Their KL divergence is that to the warmed start.

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
    "warm_all": (),
    "warm_positive": ("--config.grpo.samples=positive",),
    "warm_negative": ("--config.grpo.samples=negative",),
}
WARM = "warm"
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

    def warm(self) -> Path:
        """The folder of the warmed start."""
        return self.out / WARM


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


def judged(place: Place, path: str, seed: int, start: str = "") -> dict[str, float]:
    """What a model writes for held-out prompts; `start`: of its KL divergence, else the model of llama2.c."""
    import numpy as np

    from gramjax.generation.scoring import completion_logprobs

    opened = sampler(path, place.tokenizer)
    found = draw(opened, "valid", PROMPTS, DRAWS, 1000 + seed)
    texts = [done.text for _, done in found]
    first = sampler(start or place.weights, place.tokenizer)
    before = completion_logprobs(first, [d.request.tokens for _, d in found], [d.token_ids for _, d in found])
    own = np.array([sum(done.model_logprobs) for _, done in found])
    lengths = [len(done.token_ids) for _, done in found]
    return {
        "tree": float(np.mean([right(done) for _, done in found])),
        "ended": float(np.mean([done.finish_reason == "stop" for _, done in found])),
        "joy": float(np.mean([joy(text) for text in texts])),
        "distinct_1": distinct(texts, 1),
        "distinct_2": distinct(texts, 2),
        "different_texts": len(set(texts)) / len(texts),
        "tokens": float(np.mean(lengths)),
        "kl": float(np.sum(own - before) / np.sum(lengths)),
    }


def right(done: Any) -> bool:
    """Whether a paragraph has the reward: it names a tree and ends in time."""
    from gramjax.rewards.contains import has

    return has(done.text, "tree") and len(done.token_ids) <= 60


def warmed(place: Place) -> Path:
    """The start fine-tuned on the right ones among its own paragraphs."""
    rows, folder = place.out / "right.jsonl", place.warm()
    if not rows.exists():
        drawn = draw(sampler(place.weights, place.tokenizer), "train", 512, 32, 77)
        lines = [{"prompt": prompt, "completion": done.text + "\n"} for prompt, done in drawn if right(done)]
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if not (folder / "DONE").exists():
        train("sft", folder, [
            *place.start(), f"--config.data.train=('{rows}',)", "--config.data.max_length=96",
            "--config.optim.lr=5e-4", "--config.optim.schedule=constant", "--config.optim.warmup_ratio=0.0",
            "--config.train.batch_size=32", "--config.train.epochs=2", "--config.train.remat=none",
            "--config.train.scan_layers=False", "--config.data.packing=False",
        ])  # fmt: skip
    return folder


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
    warm = str(warmed(place)) if variant.startswith(WARM) else ""
    start = [f"--config.model.path={warm}"] if warm else place.start()
    config, flags = "grpo_stories", [*start, *VARIANTS[variant], f"--config.seed={seed}"]
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
    return {"variant": variant, "seed": seed, "after": judged(place, str(folder), seed, warm), "curves": curves}


def figure(results: dict[str, Any], path: Path) -> None:
    """The share of right answers and the length by step, a line for each run; the warmed start by itself."""
    from gramjax.plots import style

    colours = (style.BLUE, style.GREEN, style.RED, style.PURPLE, style.ORANGE, style.INK)
    cold = [variant for variant in VARIANTS if not variant.startswith(WARM)]
    warm = [variant for variant in VARIANTS if variant.startswith(WARM)]

    def lines(axes: Any) -> None:
        for axis, variants, name, title in (
            (axes[0], cold, "rewards/contains/mean", "A tree, in time"),
            (axes[1], cold, "completions/mean_length", "Tokens of a paragraph"),
            (axes[2], warm, "rewards/contains/mean", "A tree, in time: from the warmed start"),
        ):
            for variant, colour in zip(variants, colours):
                own = [r["curves"][name] for r in results["runs"] if r["variant"] == variant and name in r["curves"]]
                for number, values in enumerate(own):
                    label = variant.removeprefix(WARM).strip("_").replace("_", " ") if number == 0 else None
                    axis.plot(range(1, len(values) + 1), values, color=colour, alpha=0.8, label=label)
            axis.set_title(title)
            axis.set_xlabel("Optimiser step")
        axes[0].legend(loc="best")
        axes[2].legend(loc="best")

    style.figure(lines, path, (13.2, 3.4), nrows=1, ncols=3)


def table(results: dict[str, Any]) -> str:
    """What the models write for held-out prompts, mean and standard deviation over seeds, as markdown."""
    import numpy as np

    names = ("tree", "joy", "tokens", "distinct_1", "distinct_2", "different_texts", "kl")
    out = [f"| learned from | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for variant in VARIANTS:
        first = {"all": "before", "warm_all": "warmed"}.get(variant)
        if first in results:
            before = " | ".join(f"{results[first][name]:.3f}" for name in names[:-1])
            out.append(f"| ({'start' if first == 'before' else 'warmed start'}) | | {before} | 0 |")
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
    if "warmed" not in results and any(variant.startswith(WARM) for variant in given.variants):
        results["warmed"] = judged(place, str(warmed(place)), 0)
    known = {(r["variant"], r["seed"]) for r in results["runs"]}
    for seed in given.seeds:
        for variant in given.variants:
            if (variant, seed) not in known:
                results["runs"].append(run(place, variant, seed))
                measure.write(str(kept), results)


if __name__ == "__main__":
    main()
