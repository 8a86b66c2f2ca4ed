"""What sharing attention costs in quality: LiSA and its baselines on a model of real text, at several shares of layers.

    python benchmarks/text_model.py --out DIR
    python benchmarks/lisa_study.py --out DIR --model text [--seeds 3] [--json benchmarks/results/lisa_text.json]
    python benchmarks/text_model.py --out DIR --size small
    python benchmarks/lisa_study.py --out DIR --model small [--seeds 3] [--json benchmarks/results/lisa_text_small.json]
    python benchmarks/lisa_study.py --out DIR --model stories [--seeds 3] [--json benchmarks/results/lisa_stories.json]

`text` is the twelve-layer model of `text_model.py` in DIR/model with its rows, `small` its eight-layer one; `stories`
is stories260K with its own samples under GRAMJAX_DATA (500 to train on, 100 held out). For every share of the layers
(the deepest ones, or those that `gramjax select_layers` measures as the least sensitive) a plain verb each: `gramjax
convert --to=lisa`, `gramjax train --config=sft` of the new leaves alone, `gramjax evaluate --config=evaluate_lm`. A
seed is that of the new leaves and of the order of the rows. Numbers: held-out perplexity, next-token accuracy, share of
trained parameters, bytes of cache, and beside the original the divergence of its next token (KL, nats) and how often
both find the same one the likeliest. A run that is done is read, not repeated.
"""

import argparse
import contextlib
import dataclasses
import gzip
import io
import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure

from gramjax import cli
from gramjax.checkpoint import source as weight_source
from gramjax.data import tokenizer
from gramjax.models import decoder, heads, lisa
from gramjax.models.model import Model
from gramjax.scoring import calibration

SCORES = "layers"
"""Folder of `gramjax select_layers`, beside those of the variants."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to convert, and whether the new leaves are trained afterwards."""

    method: str
    init: str = "share"
    trained: bool = False
    chosen: bool = False
    """The layers are those that share at the least cost (`select_layers`), not the deepest."""


VARIANTS = {
    "direct sharing (DS)": Variant("share"),
    "low rank": Variant("low_rank", ""),
    "CLA": Variant("cla", ""),
    "calibrated, not trained": Variant("lisa", "calibrated"),
    "alignment alone": Variant("align", "share", True),
    "difference alone": Variant("delta", "share", True),
    "DS + difference": Variant("share_delta", "share", True),
    "LiSA from sharing": Variant("lisa", "share", True),
    "LiSA, calibrated": Variant("lisa", "calibrated", True),
    "LiSA, linear, calibrated": Variant("linear", "calibrated", True),
    "DS, chosen layers": Variant("share", chosen=True),
    "LiSA, calibrated, chosen layers": Variant("lisa", "calibrated", True, True),
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model, its rows, and how long its variants are trained."""

    model: Path
    tokenizer: str
    rows: Path
    layers: int
    shared: tuple[int, ...]
    rank: int
    length: int
    steps: int
    batch: int
    lr: float


def subject(name: str, out: Path, data: Path) -> Subject:
    """The model by name; writes the rows of `stories`."""
    if name == "text":
        return Subject(out / "model", "", out / "rows", 12, (3, 6, 9), 6, 256, 120, 8, 3e-3)
    if name == "small":
        return Subject(out / "model_small", "", out / "rows", 8, (4,), 6, 256, 120, 8, 3e-3)
    rows, folder = out / "story_rows", data / "stories260k"
    rows.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "samples.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [{"id": str(row["id"]), "text": row["text"]} for row in map(json.loads, file)]
    for part, lines in (("train", found[:500]), ("valid", found[500:])):
        (rows / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), "utf-8")
    tokenizer = str(folder / "tok512.bin")
    return Subject(folder / "stories260K.bin", tokenizer, rows, 5, (1, 2, 4), 2, 256, 200, 8, 3e-3)


def gramjax(*arguments: Any) -> str:
    """Run a verb in this process (what one compiled is there for the next); returns what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        if cli.main([str(argument) for argument in arguments]):
            raise SystemExit(f"gramjax {' '.join(map(str, arguments))} failed\n{said.getvalue()[-3000:]}")
    return said.getvalue()


def judged(model: Path, about: Subject, folder: Path) -> dict[str, float]:
    """Held-out perplexity and next-token accuracy of a model."""
    file = folder / "eval" / "perplexity.json"
    if not file.exists():
        tokens = [f"--config.tokenizer.path={about.tokenizer}"] if about.tokenizer else []
        gramjax("evaluate", "--config=evaluate_lm", f"--config.model.path={model}", f"--workdir={folder}",
                f"--config.data.path={about.rows / 'valid.jsonl'}", f"--config.data.max_length={about.length}",
                "--config.data.overlong=truncate_prompt_left", *tokens)  # fmt: skip
    found = json.loads(file.read_text("utf-8"))
    return {name: found[name] for name in ("perplexity", "nll", "accuracy")}


def opened(path: Path) -> tuple[Model, Any]:
    """A model and its weights in use."""
    source = weight_source.open_source(str(path))
    handle = Model(decoder, source.config)
    return handle, jax.jit(handle.pack)(source.load(decoder.specs(source.config), source.config).params)


def beside(path: Path, about: Subject) -> dict[str, float]:
    """The next tokens of a model against those of the original, on held-out text."""
    where = about.tokenizer or weight_source.open_source(str(about.model)).tokenizer_folder
    rows = calibration.read(str(about.rows / "valid.jsonl"), 64, tokenizer.load(where), about.length)
    both = [opened(about.model), opened(path)]

    @jax.jit
    def compare(weights: Any, batch: Any) -> Any:
        logits = [heads.logits(own, handle.forward(own, batch).hidden) for (handle, _), own in zip(both, weights)]
        was, now = (jax.nn.log_softmax(x) for x in logits)
        kl, same = jnp.sum(jnp.exp(was) * (was - now), -1), jnp.argmax(was, -1) == jnp.argmax(now, -1)
        return [jnp.sum(jnp.where(batch["counted"], x, 0)) for x in (kl, same, jnp.ones_like(kl))]

    found = [compare([weights for _, weights in both], batch) for batch in rows]
    kl, same, tokens = (float(sum(part)) for part in zip(*found))
    return {"kl": kl / tokens, "agreement": same / tokens}


def scores(about: Subject, folder: Path) -> dict[str, list[float]]:
    """Of every layer, by `gramjax select_layers` on the text that is trained on: divergences and sensitivities."""
    if not (folder / "layers.json").exists():
        tokens = [f"--config.tokenizer.path={about.tokenizer}"] if about.tokenizer else []
        gramjax("select_layers", "--config=select_layers", "--config.selection=attention_similarity",
                f"--config.model.path={about.model}", f"--config.data.path={about.rows / 'train.jsonl'}",
                "--config.probe.max_tokens=16000", f"--config.selection.rank={about.rank}",
                "--config.selection.batches=2", "--config.selection.max_js=1.0", "--config.selection.min_layer=1",
                f"--workdir={folder}", *tokens)  # fmt: skip
    return json.loads((folder / "layers.json").read_text("utf-8"))["scores"]


def chosen(about: Subject, count: int, folder: Path) -> list[int]:
    """The layers whose sharing, calibrated and one at a time, costs the least."""
    cost = scores(about, folder)["sensitivity_calibrated"]
    return sorted(sorted(range(1, about.layers), key=lambda layer: cost[layer])[:count])


def start(variant: Variant, seed: int) -> str:
    """A name for what a variant starts from, the same for variants that start from the same."""
    drawn = f"-{seed}" if variant.init == "share" and variant.method != "share" else ""  # else nothing is drawn
    return f"{variant.method}-{variant.init}-{'chosen' if variant.chosen else 'deepest'}{drawn}"


def converted(variant: Variant, about: Subject, count: int, seed: int, target: Path) -> dict[str, Any]:
    """Convert the model; what the verb says of layers, parameters and cache."""
    note = target.with_suffix(".txt")
    if not target.exists():
        layers = f"deepest:{count}"
        if variant.chosen:
            layers = ",".join(map(str, chosen(about, count, target.parents[2] / SCORES)))
        options = [f"--layers={layers}", f"--method={variant.method}", "--to=lisa", f"--seed={seed}"]
        if variant.method not in ("share", "align", "cla"):
            options.append(f"--set=rank={about.rank}")
        if variant.init:
            options.append(f"--init={variant.init}")
        if variant.init == "calibrated":
            options.append(f"--calibration={about.rows / 'train.jsonl'}")
        if about.tokenizer:
            options.append(f"--tokenizer={about.tokenizer}")
        target.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(gramjax("convert", about.model, target, *options), "utf-8")
    text = note.read_text("utf-8")
    layers = [int(layer) for layer in text.partition("[")[2].partition("]")[0].split(",")]
    if "cache" not in text:
        return {"layers": layers, "new_share": 0.0, "cache": 100.0}
    return {"layers": layers, "new_share": float(text.partition(" new parameters (")[2].partition(" %")[0]),
            "cache": float(text.partition("cache ")[2].partition(" %")[0])}  # fmt: skip


def trained(model: Path, about: Subject, seed: int, folder: Path) -> Path:
    """Train the new leaves on the text."""
    if not (folder / "DONE").exists():
        tokens = [f"--config.tokenizer.path={about.tokenizer}"] if about.tokenizer else []
        gramjax("train", "--config=sft", f"--config.model.path={model}", f"--workdir={folder}",
                f"--config.data.train=('{about.rows / 'train.jsonl'}',)", f"--config.data.max_length={about.length}",
                "--config.data.overlong=truncate_prompt_left", f"--config.train.steps={about.steps}",
                f"--config.train.batch_size={about.batch}", f"--config.optim.lr={about.lr}",
                "--config.train.remat=none",
                "--config.optim.end_lr_ratio=0.1", "--config.train.evaluate=False", "--config.log.tensorboard=False",
                f"--config.train.trainable=({lisa.NEW!r},)", f"--config.seed={seed}", *tokens)  # fmt: skip
    return folder


def run(about: Subject, folder: Path, seeds: int, names: list[str]) -> Iterator[list[dict[str, Any]]]:
    """The variants of these names (all, if there are none) at every share of the layers: the table after each seed.

    Mean and spread over the seeds of what is drawn or trained.
    """
    original = {"variant": "original", "shared": 0, "new_share": 0.0, "cache": 100.0,
                **judged(about.model, about, folder / "original")}  # fmt: skip
    show(original)
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for count in about.shared:
            for name, variant in VARIANTS.items():
                if (names and name not in names) or (seed and not variant.trained):
                    continue
                place = folder / f"{count}" / name.replace(" ", "_").replace(",", "") / str(seed)
                model = folder / f"{count}" / "converted" / start(variant, seed)
                facts = converted(variant, about, count, seed, model)
                if variant.trained:
                    model = trained(model, about, seed, place / "run")
                one = {**facts, **judged(model, about, place / "judged"), **beside(model, about)}
                found.setdefault((count, name), []).append(one)
                show({"variant": f"{name}, seed {seed}", "shared": count, **one})
        yield [original, *(summary(count, name, values) for (count, name), values in found.items())]


def summary(count: int, name: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table."""
    row = {"variant": name, "shared": count, "seeds": len(found), "layers": found[0]["layers"]}
    for key in (key for key in found[0] if key != "layers"):
        values = [entry[key] for entry in found]
        row[key] = round(statistics.mean(values), 4)
        if len(values) > 1 and key in ("perplexity", "accuracy", "kl"):
            row[f"{key}_sd"] = round(statistics.stdev(values), 4)
    return row


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    print(f"{row['shared']:>2} layers  {row['variant']:<34} perplexity {row['perplexity']:8.3f}  "
          f"accuracy {row['accuracy']:.4f}  new {row['new_share']:5.2f} %  cache {row['cache']:5.1f} %",
          flush=True)  # fmt: skip


def main() -> None:
    """Read the arguments, run, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", choices=("text", "small", "stories"), required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shared", default="", help="numbers of layers, by commas; default: three shares")
    parser.add_argument("--variants", default="", help="names, by semicolons; default: all")
    parser.add_argument("--json", default="")
    arguments = parser.parse_args()
    about = subject(arguments.model, arguments.out, Path(os.environ.get("GRAMJAX_DATA", "")))
    if arguments.shared:
        about = dataclasses.replace(about, shared=tuple(map(int, arguments.shared.split(","))))
    sizes = {key: value for key, value in dataclasses.asdict(about).items() if not isinstance(value, Path)}
    sizes["tokenizer"] = Path(sizes["tokenizer"]).name
    command = f"python benchmarks/lisa_study.py --out DIR --model {arguments.model} --seeds {arguments.seeds}"
    command += f" --variants '{arguments.variants}'" if arguments.variants else ""
    machine, folder = measure.machine(), arguments.out / f"study_{arguments.model}"
    for table in run(about, folder, arguments.seeds, [name for name in arguments.variants.split(";") if name]):
        with contextlib.redirect_stdout(io.StringIO()):
            about_run: dict[str, Any] = {"command": command, "machine": machine, "sizes": sizes}
            if (folder / SCORES).exists():  # a variant asked for them
                about_run["scores"] = scores(about, folder / SCORES)
            measure.write(arguments.json, {**about_run, "table": table})
    for row in table:
        show(row)


if __name__ == "__main__":
    main()
