"""Which layers of a model to tune or to replace: scores of every layer, and a choice."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjax.checkpoint.lock import RunLock
from gramjax.core import config as configs
from gramjax.core import flags, folder, layer_selection, plugins, runtime, signals
from gramjax.core.errors import UserError

if TYPE_CHECKING:  # JAX and NumPy are imported by the functions that need them: the help answers at once
    from gramjax.data.probe import Probe

SCORES = "scores.csv"


def main(argv: list[str]) -> int:
    """`gramjax select_layers --config=select_layers --config.model.path=DIR --config.data.path=DIR --workdir=DIR`."""
    arguments = flags.parse(argv, "select_layers")
    config = arguments.config
    if "selection" not in config:
        raise UserError(f"config {arguments.config_name!r} names no selection (it has no config.selection)")
    if not config.model.path and not config.model.random_weights:
        raise UserError("give --config.model.path=RUN_OR_HF_DIR, the model whose layers are looked at")
    if bool(config.data.path) == bool(config.data.train):
        raise UserError("give --config.data.path=FILE_OR_FOLDER, or several sources as config.data.train")
    plugin = plugins.load("selection/layers", config.selection.name)
    own = configs.section(config.selection, plugin.Config, "selection")
    runtime.start(distributed=arguments.distributed, expected=arguments.devices, alone="select_layers")
    import jax

    if arguments.dry_run:
        _, probe = open_probe(plugin, config)
        print(describe(probe))
        return 0
    workdir = Path(arguments.workdir)
    with RunLock(workdir):
        there = folder.prepare(workdir, config, arguments.overrides, config.resume, config.overwrite)
        if there and (workdir / "DONE").exists():
            print(f"{workdir} is done; --config.overwrite=True looks again")
            return 0
        network, probe = open_probe(plugin, config)
        print(describe(probe), flush=True)
        from gramjax.training import setup

        weights = jax.jit(network.model.pack)(setup.load_for_use(network, config.seed))
        with signals.served(signals.BEGINS_AGAIN):
            found = plugin.layer_scores(network.model, weights, probe, own)
        if jax.process_index() == 0:
            write(workdir, summary(config, network, probe, found), found.tables, plugin.PLOT)
            say(found, workdir)
    return 0


def open_probe(plugin: Any, config: Any) -> tuple[Any, "Probe"]:
    """The model without its weights, and the texts that it is to read."""
    from gramjax.data import languages, probe
    from gramjax.training import setup

    section = configs.section(config.probe, configs.ProbeSection, "probe")
    data = setup.data_section(config)
    texts = languages.read(data.train or (data.path,), data, section.positions)
    network = setup.open_network(config)
    made = probe.build(texts, section, network.renderer, network.mesh)
    if getattr(plugin, "LANGUAGES", False) and (len(made.languages) < 2 or "" in made.languages):
        shown = ", ".join(language or "(unknown)" for language in made.languages)
        raise UserError(
            f"config.selection={config.selection.name} compares languages, the texts have {shown}: name files after "
            "their language (de.jsonl), give de:FILE, or a column 'language'"
        )
    return network, made


def describe(probe: "Probe") -> str:
    """How many texts and tokens of which language are looked at."""
    shown = ", ".join(f"{language or 'texts'} {tokens:,}" for language, tokens in probe.tokens_by_language().items())
    lines = [f"{len(probe.sequences):,} texts in {len(probe):,} batches; tokens that count: {shown}"]
    lines += [f"  left out {count:,}: {reason}{f' (first: {first})' if first else ''}"
              for reason, (count, first) in probe.dropped.items()]  # fmt: skip
    return "\n".join(lines)


def summary(config: Any, network: Any, probe: "Probe", found: layer_selection.LayerScores) -> dict[str, Any]:
    """What `layers.json` says."""
    arch = layer_selection.architecture(network.model.config)
    return {
        "selection": config.selection.name,
        "settings": folder.as_dict(config.selection),
        "model": {"path": config.model.path, "architecture": arch},
        **layer_selection.as_json(found),
        "languages": list(probe.languages),
        "tokens": probe.tokens_by_language(),
        "texts": len(probe.sequences),
        "left_out": {reason: {"count": n, "first": first} for reason, (n, first) in probe.dropped.items()},
        "data": {"sources": list(config.data.train) or [config.data.path], "files": list(probe.files)},
        "fingerprint": layer_selection.fingerprint(arch, probe.fingerprint(), network.renderer.tokenizer.fingerprint),
    }


def write(workdir: Path, layers: Mapping[str, Any], tables: Mapping[str, Any], plot: str) -> None:
    """`scores.csv`, the pictures, and last `layers.json`."""
    from gramjax.plots import style

    number = layers["model"]["architecture"]["num_layers"]
    rows = [
        {"layer": layer, **{name: values[layer] for name, values in layers["scores"].items()},
         "chosen": int(layer in layers["layers"])}
        for layer in range(number)
    ]  # fmt: skip
    style.write_table(workdir / SCORES, rows)
    drawing = importlib.import_module(f"gramjax.plots.{plot}")
    try:
        for drawn in drawing.draw(layers, tables, workdir / "plots"):
            print(f"{drawn.title.lower()}  {drawn.picture}")
    except UserError as error:
        print(f"gramjax: no picture: {error}", file=sys.stderr)
    folder.write_json(workdir / layer_selection.FILE, layers)
    (workdir / "DONE").write_text("")


def say(found: layer_selection.LayerScores, workdir: Path) -> None:
    """The choice on one line, and what speaks against it."""
    for warning in found.warnings:
        print(f"gramjax: {warning}", file=sys.stderr)
    name = next(iter(found.scores), "")
    print(f"{name or 'layers'} by {found.rule}: layers {', '.join(map(str, sorted(found.layers))) or 'none'}")
    print(f"layers  {workdir / layer_selection.FILE}")
