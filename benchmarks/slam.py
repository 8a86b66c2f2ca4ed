"""SLAM on real weights: stories260K learns to read a second language, with what was tuned and what it cost the first.

    python benchmarks/slam.py --out DIR [--seeds 3] [--json benchmarks/results/slam_stories.json]

The second language is a seeded permutation of the model's 253 pieces of words (bytes and markup stay), a different one
per seed: new words for everything, spelled with tokens that mean something else in the old language. Texts are the 600
stories of GRAMJAX_DATA/stories260k, 480 to learn from. `gramjax select_layers` reads the same stories in both
languages and chooses two of the five layers; then pairs of sentences, new language -> old, train up and down of these,
or something else: everything, LoRA, two drawn layers, the uppermost two, the attention of the chosen. Same pairs, steps
and order for all; the learning rate of a method is the one with the best held-out translations in a trial that is not
reported. Held out: perplexity of old-language stories, perplexity and next-token accuracy of translations, and their
perplexity behind the wrong sentence (what they owe to reading is the difference).
"""

import argparse
import dataclasses
import functools
import gzip
import json
import os
import statistics
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
from gramjax.models import heads, lora, model
from gramjax.objectives import cross_entropy
from gramjax.training import optimizer, setup
from gramjax.training.step import make_step

FIRST, BOS, LINE = 259, 1, 13
"""The first piece of a word, the token before a text, and the one between source and translation."""
LONGEST, STORY = 16, 192
"""Tokens of a sentence and of a story."""
STEPS, SIZE, CHOSEN = 200, 24, 2
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
    """A permutation, and batches of it."""

    words: Any
    pairs: dict[str, Any]
    held_out: dict[str, Any]
    mismatched: dict[str, Any]


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


def batch_of(sources: list[list[int]], targets: list[list[int]], words: Any) -> dict[str, Any]:
    """BOS, the source in the new language, a line break, the target and a line break; the latter two are scored."""
    length = 2 * LONGEST + 3
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
    """Stories as they are, called by `words`."""
    tokens = np.zeros((len(found), STORY + 1), np.int32)
    real = np.zeros_like(tokens)
    for row, ids in enumerate(found):
        tokens[row, : len(ids) + 1], real[row, : len(ids) + 1] = [BOS, *words[np.array(ids)]], 1
    mask = np.roll(real, -1, 1).astype(np.float32)
    mask[:, -1] = 0
    return with_labels(tokens, mask, real)


def language(seed: int, learn: list[list[int]], held_out: list[list[int]], vocabulary: int) -> Language:
    """The language of a seed."""
    rng = np.random.default_rng(seed)
    words = np.arange(vocabulary)
    words[FIRST:] = FIRST + rng.permutation(vocabulary - FIRST)
    wrong = [held_out[(row + 1) % len(held_out)] for row in range(len(held_out))]
    return Language(words, batch_of(learn, learn, words), batch_of(held_out, held_out, words),
                    batch_of(wrong, held_out, words))  # fmt: skip


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
        cli.main(["select_layers", "--config=select_layers", f"--config.model.path={folder / 'stories260K.bin'}",
                  f"--config.tokenizer.path={texts / 'characters.bin'}", "--config.tokenizer.chat_template=none",
                  f"--config.data.train=('{texts / 'en.jsonl'}','{texts / 'new.jsonl'}')",
                  f"--config.selection.k={CHOSEN}", "--config.probe.positions=all", f"--workdir={place}"])  # fmt: skip
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
def trainer(folder: Path, method: Method) -> tuple[Any, int]:
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
        tx = optimizer.build(optim, labels, STEPS)
        step = make_step(handle, loss, tx, labels, optimizer.schedule(optim, STEPS))
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


def judged(folder: Path, params: Any, rank: int, world: Language, old: Any, new: Any) -> dict[str, float]:
    """Everything that is held out."""
    read = reader(folder, rank)
    texts = {"old": old, "new": new, "translation": world.held_out, "mismatched": world.mismatched}
    found = {name: [float(x) for x in read(params, batch)] for name, batch in texts.items()}
    return {
        "old_perplexity": float(np.exp(-found["old"][0])),
        "new_perplexity": float(np.exp(-found["new"][0])),
        "translation_perplexity": float(np.exp(-found["translation"][0])),
        "translation_accuracy": found["translation"][1],
        "wrong_source_perplexity": float(np.exp(-found["mismatched"][0])),
    }


def tuned(folder: Path, params: Any, method: Method, rate: float, world: Language, seed: int) -> Any:
    """The parameters after the pairs."""
    if method.rank:
        fresh = spec.init_params(network(folder, method.rank).specs(), jax.random.key(seed))
        params = tree.unflatten(tree.flatten(fresh) | tree.flatten(params))
    rows = np.random.default_rng(seed).integers(0, len(world.pairs["tokens"]), (STEPS, SIZE))
    return trainer(folder, method)[0](params, world.pairs, rows, rate)


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
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    folder = Path(os.environ["GRAMJAX_DATA"]) / "stories260k"
    found, params, arch = stories(folder), weights_of(folder), network(folder).config
    pieces = pieces_of((folder / "tok512.bin").read_bytes())
    stops = {index for index, piece in enumerate(pieces) if piece in (b".", b"!", b"?")}
    learn, held_out = sentences(found[:480], stops), sentences(found[480:], stops)
    held_out = [one for one in held_out if one not in learn][:200]
    results: dict[str, Any] = {
        "command": f"python benchmarks/slam.py --out DIR --seeds {args.seeds}", "machine": measure.machine(),
        "sizes": {"sentences": len(learn), "held_out_sentences": len(held_out), "steps": STEPS, "batch": SIZE},
    }  # fmt: skip
    old = text_batch(found[570:], np.arange(arch.vocab_size))
    rates: dict[str, float] = {}
    table: dict[str, list[dict[str, float]]] = {}
    results["selection"] = {}
    for seed in [TRIAL, *range(args.seeds)]:
        world = language(seed, learn, held_out, arch.vocab_size)
        new = text_batch(found[570:], world.words)
        selection = choose(folder, args.out, seed, world.words, found[:160])
        results["selection"][str(seed)] = {key: selection[key] for key in ("layers", "rule", "scores", "warnings")}
        for name, method in methods_of(tuple(selection["layers"]), arch.num_layers, seed).items():
            if seed == TRIAL:
                tried = {rate: judged(folder, tuned(folder, params, method, rate, world, seed), method.rank, world, old,
                                      new) for rate in RATES}  # fmt: skip
                rates[name] = min(RATES, key=lambda rate: tried[rate]["translation_perplexity"])
                print(json.dumps({"method": name, "rate": rates[name], "tried": tried}), flush=True)
                continue
            one = judged(folder, tuned(folder, params, method, rates[name], world, seed), method.rank, world, old, new)
            table.setdefault(name, []).append(one | {"trained": trainer(folder, method)[1]})
            print(json.dumps({"seed": seed, "method": name, "layers": method.layers} | one), flush=True)
        if seed != TRIAL:
            table.setdefault("before", []).append(judged(folder, params, 0, world, old, new))
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
