"""Let a model write columns for rows: judgements, proofs, rankings, rewards."""

import functools
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gramjax.checkpoint.lock import RunLock
from gramjax.core import config as configs
from gramjax.core import flags, folder, plugins, runtime, signals
from gramjax.core.errors import UserError
from gramjax.core.row_log import ROWS, SUMMARY, RowLog, whole_lines

if TYPE_CHECKING:  # JAX and NumPy are imported by the functions that need them: the help answers at once
    from gramjax.data.vectors import VectorLog
    from gramjax.generation.request import Statistics

EVERY_SECONDS = 10.0


def main(argv: list[str]) -> int:
    """`gramjax annotate --config=annotate:NAME --config.model.path=DIR --config.data.path=FILE --workdir=DIR`."""
    arguments = flags.parse(argv, "annotate")
    config = arguments.config
    if "annotator" not in config:
        raise UserError(f"config {arguments.config_name!r} names no annotator (it has no config.annotator)")
    if not config.model.path:
        raise UserError("give --config.model.path=RUN_OR_HF_DIR, the model that annotates")
    if not config.data.path:
        raise UserError("give --config.data.path=FILE, the rows to annotate")
    runtime.start(distributed=arguments.distributed, expected=arguments.devices, alone="annotate")
    import jax

    from gramjax.data import readers, vectors

    plugin = plugins.load("annotators", config.annotator.name)
    own = configs.section(config.annotator, plugin.Config, "annotator")
    section = configs.section(config.data, configs.DataSection, "data")
    if arguments.dry_run:
        from gramjax.core import spec

        found = readers.read(config.data.path, section, plugin.ROW_TYPES)
        network = open_network(plugin, own, config)
        print(f"{len(found.rows):,} rows of {found.total:,}, {spec.count(network.model.specs()):,} parameters")
        return 0
    workdir = Path(arguments.workdir)
    with RunLock(workdir):
        folder.prepare(workdir, config, arguments.overrides, config.resume, config.overwrite)
        found = readers.read(config.data.path, section, plugin.ROW_TYPES)
        with signals.served(), RowLog(workdir, jax.process_index() == 0) as log:
            log.check_known((row["id"] for row in found.rows), config.data.path)
            with vectors.VectorLog(workdir, len(log.written), jax.process_index() == 0) as kept:
                annotate(plugin, own, config, found.rows, log, kept)
        summary = {
            "rows": len(found.rows),
            "written": len(log.written),
            "refused": log.reasons,
            "unreadable": {reason: {"count": n, "first": first} for reason, (n, first) in found.dropped.items()},
        }
        if jax.process_index() == 0:
            summary |= summarise(plugin, workdir)
            folder.write_json(workdir / SUMMARY, summary)
            (workdir / "DONE").write_text("")
            say(summary, workdir)
    return 0


def open_network(plugin: Any, own: Any, config: Any) -> Any:
    """The model as the annotator opens it, without its weights."""
    from gramjax.training import encoding, setup

    if getattr(plugin, "OPENS", "sampler") == "sampler":
        return setup.open_network(config, heads=("tokens",))
    return encoding.network_of(config, functools.partial(plugin.heads, own))


def open_model(plugin: Any, own: Any, config: Any) -> Any:
    """What the annotator is given: a sampler, or with `OPENS = "network"` an encoder."""
    from gramjax.training import encoding, sampling

    if getattr(plugin, "OPENS", "sampler") == "sampler":
        return sampling.open_sampler(config)
    return encoding.open_encoder(config, functools.partial(plugin.heads, own))


def annotate(
    plugin: Any, own: Any, config: Any, rows: list[dict[str, Any]], log: RowLog, kept: "VectorLog"
) -> None:
    """Annotate the rows that the log does not have yet; `vector` of a row goes beside the rows, in the same order."""
    left = [row for row in rows if row["id"] not in log.done]
    if len(left) < len(rows):
        print(f"{len(rows) - len(left):,} of {len(rows):,} rows are there already", file=sys.stderr)
    if not left and (not kept.unfinished or (log.folder / "DONE").exists()):
        return
    from gramjax.generation.request import Statistics

    model = open_model(plugin, own, config)
    statistics = Statistics()
    began = last = time.monotonic()
    for row in plugin.annotate(iter(left), model, own, config.seed, log.refuse, statistics):
        if "vector" in row:
            kept.add(row.pop("vector"))
        log.add(row)
        now = time.monotonic()
        if now - last > EVERY_SECONDS:
            last = now
            print(progress(rows, log, statistics, now - began), file=sys.stderr, flush=True)
    print(progress(rows, log, statistics, time.monotonic() - began), file=sys.stderr, flush=True)
    if kept.unfinished:
        direction = getattr(model, "order_direction", None)
        kept.finish(log.written, {} if direction is None else {"order_direction": direction})


def summarise(plugin: Any, workdir: Path) -> dict[str, Any]:
    """What the annotator has to say of all its rows, and a map of their vectors in `plots/`."""
    from gramjax.data import vectors

    has_vectors = (workdir / vectors.FILE).exists()
    if not hasattr(plugin, "summarise") and not has_vectors:
        return {}
    rows = list(whole_lines(workdir / ROWS))
    matrix = vectors.read(workdir).of([row["id"] for row in rows]) if has_vectors else None
    found = plugin.summarise(rows, matrix) if hasattr(plugin, "summarise") else {}
    if matrix is not None:
        from gramjax.plots import representations

        try:
            drawn = representations.draw(rows, matrix, workdir / "plots")
            print(f"map  {drawn.picture}")
        except UserError as error:
            print(f"gramjax: no map: {error}", file=sys.stderr)
    return found


def progress(rows: list[dict[str, Any]], log: RowLog, statistics: "Statistics", seconds: float) -> str:
    """How far the job is."""
    sampled = f"{statistics.tokens_per_second:,.0f} tokens/s   slots {statistics.occupancy:.0%}   "
    return f"row {len(log.done):,}/{len(rows):,}   {sampled if statistics.tokens else ''}{seconds:.0f} s"


def say(summary: Mapping[str, Any], workdir: Path) -> None:
    """What came out, on one line, and the reasons of what did not."""
    print(f"{summary['written']:,} of {summary['rows']:,} rows  {workdir / 'rows.jsonl'}")
    for name, value in summary.items():
        if isinstance(value, int | float) and name not in ("rows", "written"):
            print(f"{name:<26}{value:.4g}")
    for reason, found in reasons(summary):
        print(f"  {found['count']:,} without: {reason} (first: {found['first']})")


def reasons(summary: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every reason for a row that did not come out."""
    yield from summary["refused"].items()
    yield from summary["unreadable"].items()
