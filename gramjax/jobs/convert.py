"""Convert weights (run, Hugging Face folder, llama2.c file): Hugging Face, run or adapter folder, shared attention."""

import contextlib
import dataclasses
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gramjax.checkpoint import (
    adapters,
    best,
    hf_config,
    huggingface,
    json_file,
    lisa_torch,
    sharing,
    state,
    tables,
)
from gramjax.checkpoint import folder as folders
from gramjax.checkpoint.source import Source, open_source
from gramjax.core import config as configs
from gramjax.core import flags, runtime, spec, tree
from gramjax.core.errors import DataError, UserError
from gramjax.data import tokenizer
from gramjax.models import block, decoder, heads, lisa, lora, stack

TOLERANCE = 1e-3
"""Largest difference of logits, relative to the largest logit (at least 1), between two programs on equal weights."""


def main(argv: list[str]) -> int:
    """`gramjax convert SRC DST [--to=hf|gramjax|lisa] [--adapter] [--verify] ...`; 1 when the verification fails."""
    arguments = _parser().parse_args(argv)
    runtime.one_process("convert")
    _check_sharing(arguments)
    source = open_source(arguments.src, arguments.step, arguments.merge)
    target = Path(arguments.dst)
    _check_apart(source.path, target)
    if arguments.adapter:
        return write_adapter(source, target, arguments)
    if arguments.base:
        raise UserError("--base belongs to --adapter: it is what adapter_config.json calls the base model")
    with contextlib.ExitStack() as cleanup:
        where = cleanup.enter_context(_tokenizer_folder(arguments.tokenizer, source))
        if not where:
            state.say(f"no tokenizer beside {source.path}: none is carried along (--tokenizer=FOLDER_OR_FILE)")
        config = _fit_tokenizer(source.config, where, arguments.pad_vocab)
        config = dataclasses.replace(lora.off(config), heads=(hf_config.exported_head(config, arguments.head),))
        dtype = jnp.dtype(arguments.dtype) if arguments.dtype else source.dtype()
        loaded = source.load(decoder.specs(config), config, dtype=dtype, pad_vocab=arguments.pad_vocab)
        _say(loaded.notes)
        params = loaded.params
        if arguments.to == "lisa":
            params, config = share_attention(params, config, where, arguments)
        pad = folders.token_ids(where).get("pad_token_id") if where else None
        rows = _rows(config, pad)
        before = logits(params, config, rows) if arguments.verify else None
        if arguments.to == "hf":
            notes = huggingface.save(
                target, params, config, where, dtype.name, fresh=source.fresh, overwrite=arguments.overwrite
            )
            _say(notes)
        else:
            _write_run(target, params, config, source, where, arguments.overwrite)
    print(f"{source.kind} {source.path} -> {arguments.to} {target} ({dtype.name}, {sum(_sizes(params)):,} parameters)")
    del params, loaded  # the copy that is verified is the second one
    return 0 if before is None or verify(target, config, rows, before) else 1


def _parser() -> flags.Parser:
    parser = flags.Parser(prog="gramjax convert", description=__doc__, allow_abbrev=False)
    parser.add_argument("src", help="run folder, Hugging Face folder, or llama2.c .bin file")
    parser.add_argument("dst", help="folder to write")
    parser.add_argument("--to", choices=("hf", "gramjax", "lisa"), default="hf", help="what to write; default: "
                        "hf. lisa: a run folder whose layers share attention, to be trained (docs/lisa.md)")
    parser.add_argument("--merge", default="", help="PEFT folder that belongs to SRC and becomes part of its matrices")
    parser.add_argument("--adapter", action="store_true", help="write the adapters of a LoRA run, as a PEFT folder")
    parser.add_argument(
        "--base", default="", help="of --adapter: the base model; default: config.model.path of the run"
    )
    parser.add_argument("--verify", action="store_true", help="load the result again and compare logits")
    parser.add_argument("--tokenizer", default="", help="tokenizer folder or file, if not the one beside the weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: as stored")
    parser.add_argument("--head", choices=decoder.HEADS, default="", help="which head, if there are several")
    parser.add_argument("--step", type=int, help="checkpoint of a run; default: the newest good one")
    parser.add_argument("--pad_vocab", action="store_true", help="add embedding rows when the tokenizer has more ids")
    parser.add_argument("--layers", default="", help="of lisa: layers.json, a list like 2,3,7-11, or deepest:COUNT")
    parser.add_argument("--init", choices=("share", "calibrated", "copy"), help="of lisa: what the new parts start as; "
                        "default: calibrated with --calibration, else share")
    parser.add_argument("--calibration", default="", help="of lisa: rows of text to calibrate on")
    parser.add_argument("--calibration_rows", type=int, help="of lisa: how many of them; default: 64")
    parser.add_argument("--method", choices=(*sharing.METHODS, sharing.LOW_RANK), default="lisa",
                        help="of lisa: the method, or a baseline of it")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="of lisa: a setting of config.model.arch.lisa, such as rank=16; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of lisa: what the new parts are drawn from")
    parser.add_argument("--overwrite", action="store_true", help="replace a model folder at DST")
    return parser


def _check_sharing(arguments: Any) -> None:
    """Raise UserError for options that belong to `--to=lisa` without it, and for `--to=lisa` without what it needs."""
    given = {"layers": arguments.layers, "init": arguments.init, "calibration": arguments.calibration,
             "set": arguments.settings, "method": arguments.method != "lisa", "seed": arguments.seed,
             "calibration_rows": arguments.calibration_rows is not None}  # fmt: skip
    if arguments.to != "lisa":
        if named := [name for name, value in given.items() if value]:
            raise UserError(f"--{named[0]} belongs to --to=lisa")
        return
    if not arguments.layers:
        raise UserError("--to=lisa needs --layers=FILE_OR_LIST: the layers that are to share attention")
    if arguments.calibration_rows is not None and not (arguments.calibration and arguments.calibration_rows > 0):
        raise UserError(
            f"--calibration_rows={arguments.calibration_rows}: a number of rows above 0, beside --calibration=FILE"
        )
    if arguments.init == "calibrated" and not arguments.calibration:
        raise UserError("--init=calibrated needs --calibration=FILE, rows of text that the model reads for it")
    if arguments.calibration and arguments.init not in (None, "calibrated"):
        raise UserError(f"--calibration belongs to --init=calibrated, not to --init={arguments.init}")


def share_attention(params: Any, config: Any, where: str, arguments: Any) -> tuple[Any, Any]:
    """The model with layers that share attention; says which, and what it costs in cache and logits."""
    layers = sharing.layers_of(arguments.layers, config)
    init = arguments.init or ("calibrated" if arguments.calibration else "share")
    if arguments.method == sharing.LOW_RANK:
        ranks = [setting for setting in arguments.settings if setting.startswith("rank=")]
        section = sharing.section_of(layers, "lisa", ranks)
        if len(ranks) < len(arguments.settings) or arguments.init or arguments.calibration:
            raise UserError("--method=low_rank cuts the projections of a plain model: it takes --set=rank=N alone")
        print(f"layers {list(layers)}: query and key projections of rank {section.rank}")
        return lisa.truncated(params, layers, section.rank), config
    section = sharing.section_of(layers, arguments.method, arguments.settings)
    mixing, low_rank = None, None
    if init == "calibrated":
        from gramjax.scoring import calibration

        rows = arguments.calibration_rows
        mixing, low_rank = calibration.from_file(
            params, config, section, arguments.calibration, where, 64 if rows is None else rows
        )
    new, shared = lisa.convert(params, config, section, jax.random.key(arguments.seed), init, mixing, low_rank)
    before, after = (sum(k * e for i in range(c.num_layers) for k, e in block.cached(c, c.layer_kinds()[i]).values())
                     for c in (config, shared))  # fmt: skip
    fresh = sum(x.size for path, x in tree.flatten(new).items() if re.fullmatch(lisa.NEW, path))
    if init != "copy" and section.rank >= config.head_dim:
        state.say(f"rank {section.rank} is not below the width of a head ({config.head_dim}): nothing is saved by it")
    print(f"{len(layers)} of {config.num_layers} layers share attention: {list(layers)}; {sharing.as_text(section)}; "
          f"init {init}; {fresh:,} new parameters ({100 * fresh / sum(_sizes(params)):.2f} %); "
          f"cache {100 * after / before:.1f} %")  # fmt: skip
    rows = _rows(config, None)
    _, text = compare(logits(new, shared, rows), logits(params, config, rows), config.heads == ("tokens",))
    print(f"against the original, on random tokens: {text.partition(': ok')[0].partition(': FAILED')[0]}")
    return new, shared


def write_adapter(source: Source, target: Path, arguments: Any) -> int:
    """Write the adapters of a run (and its reward head) as a PEFT folder; with `verify`, load it onto its base."""
    for flag, given in ((f"--to={arguments.to}", arguments.to != "hf"), ("--merge", arguments.merge),
                        ("--pad_vocab", arguments.pad_vocab)):  # fmt: skip
        if given:
            raise UserError(f"{flag} does not go with --adapter, which writes a PEFT folder and nothing else")
    if source.kind != "run" or not source.config.lora.rank:
        raise UserError(f"--adapter: {source.path} has no adapters; it takes a run that was trained with config.lora")
    base = arguments.base or base_of(source)
    head = hf_config.exported_head(source.config, arguments.head)
    config = dataclasses.replace(source.config, heads=(head,))
    whole = trained_whole(source, config)
    adapters.settings_for(config, head, base, whole)  # says at once what an adapter folder cannot hold
    params = source.load(decoder.specs(config), config).params
    flat = tree.flatten(params)
    with _tokenizer_folder(arguments.tokenizer, source) as where:
        leaves = {path: flat[path] for path in adapters.rows(config, whole)}
        _say(adapters.save(target, leaves, config, base, where, arguments.dtype, source.fresh, arguments.overwrite))
        pad = folders.token_ids(where).get("pad_token_id") if where else None
    print(f"run {source.path} -> adapter {target} ({sum(_sizes(leaves)):,} parameters, base {base})")
    if not arguments.verify:
        return 0
    if not Path(base).exists():
        print(f"verify: skipped, the base model {base} is not there")
        return 0
    again = open_source(base, None, target)
    rows = _rows(config, pad)
    loaded = again.load(decoder.specs(again.config), again.config, dtype=source.dtype())
    good, text = compare(logits(loaded.params, again.config, rows), logits(params, config, rows), head == "tokens")
    print(f"verify with gramjax, on {base}: {text}")
    return 0 if good else 1


def trained_whole(source: Source, config: Any) -> list[str]:
    """The leaves of the model to be written that trained whole beside its adapters (`config.train.trainable`)."""
    patterns = tuple(state.read_run(source.path).get("train", {}).get("trainable", []))
    if patterns == configs.TrainSection.trainable:
        return []
    labels = tree.labels(list(tree.flatten(decoder.specs(source.config), is_leaf=spec.is_spec)), patterns)
    known, held = tree.flatten(decoder.specs(config), is_leaf=spec.is_spec), adapters.rows(config)
    return [name for name, label in labels.items() if label == tree.TRAIN and name in known and name not in held]


def base_of(source: Source) -> str:
    """The model that the adapters of a run belong to. Raises UserError where the base is no model folder."""
    settings = state.read_run(source.path)
    section = settings.get("model", {})
    path = section.get("path", "")
    if not path or section.get("random_weights"):
        raise UserError(f"{source.path} started from weights drawn from the seed: there is no base model to name")
    if section.get("adapter") or (best.split(path)[0] / state.FOLDER).is_dir() or Path(path).is_file():
        raise UserError(f"{source.path} started from {section.get('adapter') or path}: give --base=FOLDER, a Hugging "
                        "Face folder with the weights it started from (gramjax convert writes one)")  # fmt: skip
    if "tokens" in source.config.heads and Path(path).exists() and "tokens" not in open_source(path).config.heads:
        raise UserError(f"an adapter folder cannot hold lm_head, which {path} does not have: export the whole model")
    return path


def _say(notes: Any) -> None:
    for note in notes:
        state.say(note)


def _sizes(params: Any) -> Iterator[int]:
    return (leaf.size for leaf in jax.tree.leaves(params))


def _check_apart(source: Path, target: Path) -> None:
    here, there = os.path.realpath(source), os.path.realpath(target)
    if os.path.commonpath([here, there]) in (here, there):
        raise UserError(f"{target} and {source} lie inside each other: give a DST of its own")


@contextlib.contextmanager
def _tokenizer_folder(given: str, source: Source) -> Iterator[str]:
    """A folder with the tokenizer files to carry along; empty when there are none."""
    path = Path(given) if given else None
    if path is None or path.is_dir():
        yield str(path) if path else source.tokenizer_folder
        return
    with tempfile.TemporaryDirectory() as made:
        tokenizer.load(str(path)).save(made)
        yield made


def _fit_tokenizer(config: decoder.Config, where: str, pad: bool) -> decoder.Config:
    if not where or not (Path(where) / "tokenizer.json").exists():
        return config
    return hf_config.check_vocab(config, tokenizer.load(where).vocab_size, pad)


def _write_run(target: Path, params: Any, config: Any, source: Source, where: str, overwrite: bool) -> None:
    """A run folder with one checkpoint that holds the parameters only."""
    settings: dict[str, Any] = {}
    if source.kind == "run":
        with contextlib.suppress(UserError):  # a run that was itself made by hand needs no settings
            settings = state.read_run(source.path)
    arch = dataclasses.asdict(config)
    del arch["lora"]  # none is left
    settings.pop("lora", None)
    settings["model"] = {**settings.get("model", {"kind": "decoder"}), "path": "", "arch": arch}
    settings["model"].pop("adapter", None)
    step = source.step or 0
    with folders.replacing(target, overwrite) as new:
        json_file.write(new / "config.json", settings)
        if where:
            (new / "tokenizer").mkdir()
            _say(folders.carry_tokenizer(Path(where), new / "tokenizer"))
        with state.Checkpoints(new) as saved:
            content = {"params": params, "step": jnp.asarray(step, jnp.int32)}
            saved.save(step, content, {}, {"model": arch, "fresh": list(source.fresh)})


def _rows(config: decoder.Config, pad: int | None) -> np.ndarray:
    """Token rows to compare on: the same in every run, and without padding."""
    length = min(config.max_position_embeddings, 32)
    rows = np.random.default_rng(0).integers(0, config.vocab_size, (4, length), dtype=np.int32)
    return np.where(rows == pad, (rows + 1) % config.vocab_size, rows) if pad is not None else rows


def logits(params: Any, config: decoder.Config, rows: np.ndarray) -> np.ndarray:
    """What the head of a model says, computed in float32: vocabulary logits [B, T, V], values [B, T], scores [B]."""

    @jax.jit
    def compute(params: Any, tokens: jax.Array) -> jax.Array:
        weights = stack.pack(params, config.layer_kinds(), jnp.float32, scan=False)
        hidden = decoder.forward(weights, config, {"tokens": tokens}).hidden
        if config.heads == ("score",):
            return heads.score(weights, hidden[:, -1:])[:, 0]
        return heads.value(weights, hidden) if config.heads == ("value",) else heads.logits(weights, hidden)

    return np.asarray(compute(params, rows))


def torch_logits(folder: Path, head: str, rows: np.ndarray) -> np.ndarray:
    """The same from transformers and torch, which read the exported folder with their own code."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, f"AutoModel{tables.ARCHITECTURES[head]}")
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    if wrong := {name: sorted(keys) for name, keys in info.items() if keys}:
        raise DataError(f"{folder}: transformers does not read this folder in full: {wrong}")
    with torch.no_grad():
        out = model.float().eval()(torch.from_numpy(rows).long()).logits.numpy()
    return out if head == "tokens" else out[..., 0]


def reference_logits(folder: Path, rows: np.ndarray) -> np.ndarray:
    """The same from the torch file that comes with a folder whose layers share attention."""
    import torch

    with torch.no_grad():
        return np.asarray(lisa_torch.logits(*lisa_torch.load(folder), torch.from_numpy(rows).long()).numpy())


def compare(ours: np.ndarray, theirs: np.ndarray, vocabulary: bool) -> tuple[bool, str]:
    """Whether two results agree within the tolerance, and a line that says how well."""
    gap = float(np.abs(ours - theirs).max())
    good = bool(np.isfinite(gap)) and gap <= TOLERANCE * max(1.0, float(np.abs(theirs).max()))
    text = f"max abs difference {gap:.2e}"
    if vocabulary:
        p, q = (_log_softmax(x.astype(np.float64)) for x in (ours, theirs))
        divergence = float(np.sum(np.exp(p) * (p - q), axis=-1).mean())
        agreement = float((ours.argmax(-1) == theirs.argmax(-1)).mean())
        text += f", KL {divergence:.2e}, top-1 agreement {100 * agreement:.1f} %"
    return good, f"{text}: {'ok' if good else 'FAILED'}"


def _log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def verify(target: Path, config: decoder.Config, rows: np.ndarray, before: np.ndarray) -> bool:
    """Load a written folder with the importer, and with transformers where torch is there; print how it compares."""
    again = open_source(target)
    loaded = again.load(decoder.specs(again.config), again.config, dtype=again.dtype())
    after = logits(loaded.params, again.config, rows)
    del loaded
    vocabulary = config.heads == ("tokens",)
    results = [("verify with gramjax", compare(after, before, vocabulary))]
    if again.kind == "huggingface" and again.config.lisa.layers and importlib.util.find_spec("torch"):
        results.append(("verify with lisa_torch.py", compare(after, reference_logits(target, rows), vocabulary)))
    elif again.kind == "huggingface":
        if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            theirs = torch_logits(target, config.heads[0], rows)
            results.append(("verify with transformers", compare(after, theirs, vocabulary)))
        else:
            print('verify with transformers: skipped, torch is not installed (pip install "gramjax[torch]")')
    for name, (_, text) in results:
        print(f"{name}: {text}")
    return all(good for _, (good, _) in results)
