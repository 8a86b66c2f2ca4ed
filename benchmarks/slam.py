"""SLAM on real weights: stories260K learns to read a second language, with what was tuned and what it cost the first.

    python benchmarks/slam.py --out DIR [--seeds 3] [--json benchmarks/results/slam_stories.json]
    python benchmarks/slam.py --out DIR --texts real [--seeds 3] [--json benchmarks/results/slam_real.json]

`permuted`: the second language is a seeded permutation of the model's 253 pieces of words (bytes and markup stay), a
different one per seed: new words for everything, spelled with tokens that mean something else in the old language.
Texts are the 600 stories of GRAMJAX_DATA/stories260k, 480 to learn from. `real`: five languages as people write them,
which the model never saw. Pairs are sentences of Tatoeba and their English, another 100 of each language held out per
seed; layers are chosen on NTREX, whose sentences are the same in all of them.
`gramjax select_layers` reads the same texts in both languages and chooses two of the five layers; then pairs of
sentences, new language -> old, train up and down of these, or something else: everything, LoRA, two drawn layers, the
uppermost two, the attention of the chosen. Same pairs, steps and order for all; the learning rate of a method is the
one with the best held-out translations in a trial that is not reported. Held out: perplexity of old-language stories,
perplexity and next-token accuracy of translations, and their perplexity behind the wrong sentence (what they owe to
reading is the difference).
"""

import argparse
import dataclasses
import functools
import gzip
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from gramjax import cli
from gramjax.checkpoint import source as weight_source
from gramjax.core import config as configs
from gramjax.core import layer_selection, sharding, spec, tree
from gramjax.data import tokenizer
from gramjax.models import heads, lora, model
from gramjax.objectives import cross_entropy
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step

FIRST, BOS, LINE = 259, 1, 13
"""The first piece of a word, the token before a text, and the one between source and translation."""
LONGEST, STORY = 16, 192
"""Tokens of a sentence and of a story."""
SOURCE, TARGET = 32, 24
"""Tokens of a sentence in a real language, and of its English."""
REAL = ("deu", "fra", "ita", "por", "spa")
STEPS = {"permuted": 200, "real": 200}
SIZE, CHOSEN = 24, 2
RATES = (1e-3, 3e-3)
TRIAL = 100


@dataclasses.dataclass(frozen=True)
class Method:
    """What trains on the pairs."""

    layers: tuple[int, ...] = ()
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")
    rank: int = 0


@dataclasses.dataclass(frozen=True)
class Language:
    """What is learned, and what is held out: batches."""

    pairs: dict[str, Any]
    held_out: dict[str, Any]
    mismatched: dict[str, Any]
    """The held-out translations behind the wrong sentence."""
    new: dict[str, Any]
    """Texts in the new language."""


@dataclasses.dataclass(frozen=True)
class Study:
    """The new language of a seed, and the layers that are chosen for it."""

    steps: int
    language: Callable[[int], Language]
    selection: Callable[[int], dict[str, Any]]
    sizes: dict[str, Any]


def network(folder: Path, rank: int = 0) -> Any:
    """The model of llama2.c, with adapters of this rank."""
    arch = dataclasses.replace(
        weight_source.open_source(str(folder / "stories260K.bin")).config, lora=configs.LoraSection(rank=rank)
    )
    return model.build("decoder", arch, compute_dtype="float32", logit_chunk=2**14)


def weights_of(folder: Path) -> Any:
    """Its parameters."""
    handle = network(folder)
    mesh = sharding.make_mesh(configs.MeshSection(), jax.devices()[:1])
    dtypes = spec.map_specs(lambda _: jnp.dtype(jnp.float32), handle.specs())
    places = sharding.shardings(handle.specs(), mesh)
    return setup.load_params(handle, weight_source.open_source(str(folder / "stories260K.bin")), places, dtypes).params


def stories(folder: Path) -> list[list[int]]:
    """Token ids of the samples, cut to `STORY`."""
    with gzip.open(folder / "samples.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["ids"][:STORY] for line in file]


def sentences(found: list[list[int]], stops: set[int]) -> list[list[int]]:
    """Sentences of 6 to `LONGEST` tokens, each once."""
    out: dict[tuple[int, ...], None] = {}
    for ids in found:
        current: list[int] = []
        for token in ids:
            if token != LINE:
                current.append(token)
            if token in stops or token == LINE:
                if 6 <= len(current) <= LONGEST:
                    out[tuple(current)] = None
                current = []
    return [list(one) for one in out]


def batch_of(sources: list[list[int]], targets: list[list[int]], words: Any, length: int) -> dict[str, Any]:
    """BOS, the source called by `words`, a line break, the target and a line break; the latter two are scored."""
    tokens, mask = np.zeros((len(sources), length), np.int32), np.zeros((len(sources), length), np.float32)
    real = np.zeros_like(tokens)
    for row, (source, target) in enumerate(zip(sources, targets)):
        ids = [BOS, *words[np.array(source)], LINE, *target, LINE]
        tokens[row, : len(ids)], real[row, : len(ids)] = ids, 1
        mask[row, len(source) + 1 : len(ids) - 1] = 1
    return with_labels(tokens, mask, real)


def with_labels(tokens: Any, mask: Any, real: Any) -> dict[str, Any]:
    """A batch as objectives read it."""
    positions = np.tile(np.arange(tokens.shape[1], dtype=np.int32), (len(tokens), 1))
    return {"tokens": tokens, "labels": np.roll(tokens, -1, 1), "loss_mask": mask, "segment_ids": real,
            "positions": positions}  # fmt: skip


def text_batch(found: list[list[int]], words: Any) -> dict[str, Any]:
    """Texts as they are, called by `words`."""
    tokens = np.zeros((len(found), max(map(len, found)) + 1), np.int32)
    real = np.zeros_like(tokens)
    for row, ids in enumerate(found):
        tokens[row, : len(ids) + 1], real[row, : len(ids) + 1] = [BOS, *words[np.array(ids)]], 1
    mask = np.roll(real, -1, 1).astype(np.float32)
    mask[:, -1] = 0
    return with_labels(tokens, mask, real)


def permuted(folder: Path, out: Path, found: list[list[int]], vocabulary: int) -> Study:
    """Stories in a language that permutes the pieces of words."""
    pieces = pieces_of((folder / "tok512.bin").read_bytes())
    stops = {index for index, piece in enumerate(pieces) if piece in (b".", b"!", b"?")}
    learn, held_out = sentences(found[:480], stops), sentences(found[480:], stops)
    held_out = [one for one in held_out if one not in learn][:200]
    length = 2 * LONGEST + 3

    def words(seed: int) -> Any:
        order = np.random.default_rng(seed).permutation(vocabulary - FIRST)
        return np.concatenate([np.arange(FIRST), FIRST + order])

    def language(seed: int) -> Language:
        called, wrong = words(seed), [*held_out[1:], held_out[0]]
        made = [batch_of(sources, targets, called, length)
                for sources, targets in ((learn, learn), (held_out, held_out), (wrong, held_out))]  # fmt: skip
        return Language(*made, text_batch(found[570:], called))

    sizes = {"sentences": len(learn), "held_out_sentences": len(held_out), "batch": SIZE}
    return Study(STEPS["permuted"], language, lambda seed: choose(folder, out, seed, words(seed), found[:160]), sizes)


def real(folder: Path, out: Path, vocabulary: int) -> Study:
    """Languages as people write them, with their English."""
    read, every = tokenizer.load(str(folder / "tok512.bin")), {}
    for name in REAL:
        with gzip.open(folder.parent / "tatoeba" / f"{name}-eng.tsv.gz", "rt", encoding="utf-8") as file:
            lines = [line.rstrip("\n").split("\t") for line in file]
        ids = [tuple(list(read.encode_text(text)) for text in pair) for pair in lines]
        every[name] = [pair for pair in ids if len(pair[0]) <= SOURCE and len(pair[1]) <= TARGET]
    kept, length = np.arange(vocabulary), SOURCE + TARGET + 3

    def language(seed: int) -> Language:
        rng, learn, held_out = np.random.default_rng(seed), [], []
        for pairs in every.values():
            order = rng.permutation(len(pairs))
            held_out += [pairs[i] for i in order[:100]]
            learn += [pairs[i] for i in order[100:]]
        known = {tuple(english) for _, english in held_out}
        learn = [pair for pair in learn if tuple(pair[1]) not in known]
        sources, targets = map(list, zip(*held_out))
        wrong = [*sources[1:], sources[0]]
        return Language(batch_of(*map(list, zip(*learn)), kept, length), batch_of(sources, targets, kept, length),
                        batch_of(wrong, targets, kept, length), text_batch(sources, kept))  # fmt: skip

    @functools.lru_cache
    def selection() -> dict[str, Any]:
        files = [str(folder.parent / "ntrex" / f"{name}.dev.txt.gz") for name in ("eng", *REAL)]
        return selected(folder, out / "layers_real", folder / "tok512.bin", files)

    sizes = {"pairs": {name: len(pairs) for name, pairs in every.items()}, "held_out_pairs": 100 * len(REAL),
             "batch": SIZE}  # fmt: skip
    return Study(STEPS["real"], language, lambda seed: selection(), sizes)


def choose(folder: Path, out: Path, seed: int, words: Any, found: list[list[int]]) -> dict[str, Any]:
    """`gramjax select_layers` on the stories in both languages.

    Texts are written with a character per piece, and read with a tokenizer that has these characters: re-coded text
    would not be cut into the same pieces.
    """
    place = out / f"layers_{seed}"
    if not (place / "layers.json").exists():
        texts = out / f"texts_{seed}"
        texts.mkdir(parents=True, exist_ok=True)
        raw, pieces = (folder / "tok512.bin").read_bytes(), bytearray()
        pieces += raw[:4]
        offset = 4
        for index in range(len(words)):
            size = int.from_bytes(raw[offset + 4 : offset + 8], "little")
            piece = raw[offset + 8 : offset + 8 + size]
            if index >= FIRST and piece != b" ":
                piece = chr(0x4E00 + index).encode()
            pieces += raw[offset : offset + 4] + len(piece).to_bytes(4, "little") + piece
            offset += 8 + size
        (texts / "characters.bin").write_bytes(pieces)
        spelled = {"en": np.arange(len(words)), "new": words}
        for name, called in spelled.items():
            rows = [{"id": str(row), "language": name, "text": text_of(called[np.array(ids)], raw)}
                    for row, ids in enumerate(found)]  # fmt: skip
            (texts / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    files = [str(out / f"texts_{seed}" / f"{name}.jsonl") for name in ("en", "new")]
    return selected(folder, place, out / f"texts_{seed}" / "characters.bin", files)


def selected(folder: Path, place: Path, tokens: Path, files: list[str]) -> dict[str, Any]:
    """`layers.json` of the model on texts by language."""
    if not (place / "layers.json").exists():
        cli.main(["select_layers", "--config=select_layers", f"--config.model.path={folder / 'stories260K.bin'}",
                  f"--config.tokenizer.path={tokens}", "--config.tokenizer.chat_template=none",
                  f"--config.data.train={tuple(files)!r}", f"--config.selection.k={CHOSEN}",
                  "--config.probe.positions=all", f"--workdir={place}"])  # fmt: skip
    return json.loads((place / "layers.json").read_text("utf-8"))


def text_of(ids: Any, raw: bytes) -> str:
    """A character per piece; the line break and the space are themselves."""
    space = next(index for index, piece in enumerate(pieces_of(raw)) if piece == b" ")
    return "".join("\n" if i == LINE else " " if i == space else chr(0x4E00 + i) for i in map(int, ids))


@functools.lru_cache
def pieces_of(raw: bytes) -> tuple[bytes, ...]:
    """The pieces of a llama2.c tokenizer."""
    out, offset = [], 4
    while offset < len(raw):
        size = int.from_bytes(raw[offset + 4 : offset + 8], "little")
        out.append(raw[offset + 8 : offset + 8 + size])
        offset += 8 + size
    return tuple(out)


@functools.lru_cache
def trainer(folder: Path, method: Method, steps: int) -> tuple[Any, int]:
    """`(params, pairs, rows [steps, size], learning rate) -> params`, and how many parameters train."""
    handle = network(folder, method.rank)
    sizes = {path: leaf.size for path, leaf in tree.flatten(handle.specs(), is_leaf=spec.is_spec).items()}
    section = configs.SelectSection(layers=method.layers, targets=method.targets)
    labels = setup.trained(list(sizes), (r".*",), None, layer_selection.patterns(section, handle.config))
    if method.rank:
        labels = {path: tree.TRAIN if lora.is_rank_leaf(path) else tree.FREEZE for path in sizes}
    loss = lambda m, w, b: cross_entropy.loss(m, w, b, cross_entropy.Config())  # noqa: E731

    @jax.jit
    def run(params: Any, pairs: Any, rows: Any, rate: Any) -> Any:
        optim = configs.OptimSection(lr=rate, warmup_ratio=0.05)
        tx = optimizer.build(optim, labels, steps)
        step = make_step(handle, loss, tx, labels, optimizer.schedule(optim, steps))
        state = {"params": params, "opt_state": tx.init(params), "step": jnp.zeros((), jnp.int32)}
        one = lambda state, row: (step(state, jax.tree.map(lambda x: x[row], pairs))[0], None)  # noqa: E731
        return jax.lax.scan(one, state, rows)[0]["params"]

    return run, sum(size for path, size in sizes.items() if labels[path] == tree.TRAIN)


@functools.lru_cache
def reader(folder: Path, rank: int) -> Any:
    """`(params, batch) -> (nll, accuracy)` per scored token."""
    handle = network(folder, rank)

    @jax.jit
    def read(params: Any, batch: Any) -> Any:
        weights = handle.pack(params)
        found = heads.predictions(weights, handle.forward(weights, batch).hidden, batch["labels"], 2**14)
        return [jnp.sum(x * batch["loss_mask"]) / jnp.sum(batch["loss_mask"]) for x in found]

    return read


def judged(folder: Path, params: Any, rank: int, world: Language, old: Any) -> dict[str, float]:
    """Everything that is held out."""
    read = reader(folder, rank)
    texts = {"old": old, "new": world.new, "translation": world.held_out, "mismatched": world.mismatched}
    found = {name: [float(x) for x in read(params, batch)] for name, batch in texts.items()}
    return {
        "old_perplexity": float(np.exp(-found["old"][0])),
        "new_perplexity": float(np.exp(-found["new"][0])),
        "translation_perplexity": float(np.exp(-found["translation"][0])),
        "translation_accuracy": found["translation"][1],
        "wrong_source_perplexity": float(np.exp(-found["mismatched"][0])),
    }


def outcome(
    folder: Path, params: Any, method: Method, rate: float, world: Language, seed: int, steps: int, old: Any
) -> dict[str, float]:
    """What is held out after the pairs of a world, drawn in an order that is the same for all methods."""
    if method.rank:
        fresh = spec.init_params(network(folder, method.rank).specs(), jax.random.key(seed))
        params = tree.unflatten(tree.flatten(fresh) | tree.flatten(params))
    rows = np.random.default_rng(seed).integers(0, len(world.pairs["tokens"]), (steps, SIZE))
    made = trainer(folder, method, steps)[0](params, world.pairs, rows, rate)
    return judged(folder, made, method.rank, world, old)


def methods_of(chosen: tuple[int, ...], layers: int, seed: int) -> dict[str, Method]:
    """What is compared."""
    drawn = layer_selection.by_rule("random", len(chosen), layers, seed)
    return {
        "selective": Method(chosen),
        "full": Method(),
        "lora": Method(rank=8),
        "random layers": Method(tuple(sorted(drawn))),
        "upper layers": Method(tuple(range(layers - len(chosen), layers))),
        "attention": Method(chosen, ("attn",)),
    }


def main() -> None:
    """Choose rates in a trial, then run every seed and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--texts", choices=("permuted", "real"), default="permuted")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="methods, by commas; default: all")
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    folder = Path(os.environ["GRAMJAX_DATA"]) / "stories260k"
    found, params, arch = stories(folder), weights_of(folder), network(folder).config
    study = (permuted(folder, args.out, found, arch.vocab_size) if args.texts == "permuted" else
             real(folder, args.out, arch.vocab_size))  # fmt: skip
    results: dict[str, Any] = {
        "command": f"python benchmarks/slam.py --out DIR --texts {args.texts} --seeds {args.seeds}"
        + (f" --only {args.only}" if args.only else ""),
        "machine": measure.machine(), "sizes": {**study.sizes, "steps": study.steps}, "selection": {},
    }  # fmt: skip
    old = text_batch(found[570:], np.arange(arch.vocab_size))
    rates: dict[str, float] = {}
    table: dict[str, list[dict[str, float]]] = {}
    kept = ("layers", "rule", "scores", "warnings", "languages", "tokens", "by_language")
    for seed in [TRIAL, *range(args.seeds)]:
        world, selection = study.language(seed), study.selection(seed)
        results["selection"][str(seed)] = {key: selection[key] for key in kept}
        for name, method in methods_of(tuple(selection["layers"]), arch.num_layers, seed).items():
            if args.only and name not in args.only.split(","):
                continue
            if seed == TRIAL:
                tried = {rate: outcome(folder, params, method, rate, world, seed, study.steps, old) for rate in RATES}
                rates[name] = min(RATES, key=lambda rate: tried[rate]["translation_perplexity"])
                results.setdefault("tried", {})[name] = tried
                print(json.dumps({"method": name, "rate": rates[name], "tried": tried}), flush=True)
                continue
            one = outcome(folder, params, method, rates[name], world, seed, study.steps, old)
            table.setdefault(name, []).append(one | {"trained": trainer(folder, method, study.steps)[1]})
            print(json.dumps({"seed": seed, "method": name, "layers": method.layers} | one), flush=True)
        if seed != TRIAL:
            table.setdefault("before", []).append(judged(folder, params, 0, world, old))
            summarise(results, rates, table)
            if args.json:
                Path(args.json).write_text(json.dumps(results, indent=1) + "\n")
    measure.write(args.json, results)


def summarise(results: dict[str, Any], rates: dict[str, float], table: dict[str, list[dict[str, float]]]) -> None:
    """Put mean and standard deviation over the seeds so far into the results."""
    results["rates"] = rates
    results["seeds"] = table
    results["table"] = {
        name: {key: [round(statistics.mean(v[key] for v in values), 4),
                     round(statistics.pstdev(v[key] for v in values), 4)] for key in values[0]}
        for name, values in table.items()
    }  # fmt: skip


if __name__ == "__main__":
    main()
