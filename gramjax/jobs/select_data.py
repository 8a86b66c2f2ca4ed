"""Choose rows of a file: by votes, by rules, by representation."""

import json
from pathlib import Path

from gramjax.core import config as configs
from gramjax.core import flags, folder, plugins, runtime
from gramjax.core.errors import UserError
from gramjax.core.row_log import ROWS, SUMMARY


def main(argv: list[str]) -> int:
    """`gramjax select_data --config=select_data:NAME --config.data.path=FILE --workdir=DIR`: DIR/rows.jsonl."""
    arguments = flags.parse(argv, "select_data")
    if arguments.devices or arguments.distributed:
        raise UserError("--devices, --distributed: select_data is one process that uses none")
    from gramjax.data import readers, vectors  # after the help, which answers without NumPy

    config = arguments.config
    if "selection" not in config:
        raise UserError(f"config {arguments.config_name!r} names no selection (it has no config.selection)")
    if not config.data.path:
        raise UserError("give --config.data.path=FILE, the rows to choose from")
    runtime.one_process("select_data")
    plugin = plugins.load("selection/rows", config.selection.name)
    own = configs.section(config.selection, plugin.Config, "selection")
    section = configs.section(config.data, configs.DataSection, "data")
    found = readers.read(config.data.path, section, plugin.ROW_TYPES)
    named = {name: getattr(own, name) for name in getattr(plugin, "FEATURES", ())}
    features = {name: vectors.read(path) for name, path in named.items() if path} if named else None
    kept, dropped = plugin.select(found.rows, features, own, config.seed)
    print(f"{len(kept):,} of {len(found.rows):,} rows kept")
    for reason, (count, first) in dropped.items():
        print(f"  {count:,} left out: {reason} (first: {first})")
    if arguments.dry_run:
        return 0
    workdir = Path(arguments.workdir)
    folder.prepare(workdir, config, arguments.overrides, config.resume, config.overwrite)
    new = workdir / f"{ROWS}.new"
    with new.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    new.replace(workdir / ROWS)
    counted = {reason: {"count": count, "first": first} for reason, (count, first) in dropped.items()}
    unreadable = {reason: {"count": count, "first": first} for reason, (count, first) in found.dropped.items()}
    summary = {"rows": len(found.rows), "written": len(kept), "refused": counted, "unreadable": unreadable}
    folder.write_json(workdir / SUMMARY, summary)
    (workdir / "DONE").write_text("")
    print(f"rows  {workdir / ROWS}")
    return 0
