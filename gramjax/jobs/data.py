"""Look at a data file before training on it, or write it with TRL's column names.

`gramjax data check FILE` says what type the rows have, how many are usable, why the others are not, how long they
are, and (with a tokenizer) shows three rows exactly as a model would see them. `gramjax data convert SRC DST` writes
the usable rows as JSON lines. `gramjax data contamination --train FILE --eval FILE` looks for the questions of an
evaluation among training rows and can write the training rows without them. `gramjax data pairs SRC ... DST` makes
translation pairs (SLAM) out of files with the same texts in several languages.
"""

import argparse
import collections
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gramjax.core import flags
from gramjax.core.config import DataSection
from gramjax.core.errors import DataError, UserError
from gramjax.data import contamination, judge_prompts, readers, rows, text, tokenizer, translation_pairs

SHOWN = 3
"""Rows that are printed as a model sees them."""
BAR = 40


def main(argv: list[str]) -> int:
    """`gramjax data check|convert|contamination|pairs ...`; returns 3 when no row is usable."""
    arguments = _parser().parse_args(argv)
    actions = {"check": check, "convert": convert, "contamination": contaminated, "pairs": pairs}
    return actions[arguments.action](arguments)


def _parser() -> argparse.ArgumentParser:
    parser = flags.Parser(prog="gramjax data", description=__doc__, allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True)
    look = actions.add_parser("check", help="what is in a file, and what would be dropped", allow_abbrev=False)
    look.add_argument("source", metavar="FILE", help="file, folder or recipe:NAME[:SPLIT]")
    look.add_argument("--tokenizer", default="", help="tokenizer folder or file, `bytes`, or recipe:NAME")
    look.add_argument("--chat_template", default="", help="chatml, a .jinja file, or none")
    look.add_argument("--render", choices=("auto", "judge", "completion"), default="auto",
                      help="preference rows as a judge's comparison (auto) or answer by answer")  # fmt: skip
    look.add_argument("--max_length", type=int, default=DataSection().max_length, help="default: %(default)s")
    look.add_argument("--overlong", choices=text.POLICIES, default="drop", help="default: %(default)s")
    look.add_argument("--against", default="", help="a second file: count rows whose prompt is in it (leak check)")
    look.add_argument("--json", action="store_true", help="print one JSON object")
    write = actions.add_parser("convert", help="write the usable rows with TRL's names", allow_abbrev=False)
    write.add_argument("source", metavar="SRC")
    write.add_argument("target", metavar="DST", help="a .jsonl file")
    write.add_argument("--overwrite", action="store_true", help="replace DST")
    leak = actions.add_parser("contamination", help="training rows with a question of an evaluation",
                              allow_abbrev=False)  # fmt: skip
    leak.add_argument("--train", required=True, action="append", metavar="FILE", help="training rows; may be repeated")
    leak.add_argument("--eval", required=True, action="append", metavar="FILE", help="evaluation rows; may be repeated")
    leak.add_argument("--n", type=int, default=contamination.NGRAM, help="words in a run (default: %(default)s); "
                      "shorter prompts are compared whole")  # fmt: skip
    leak.add_argument("--output", default="", metavar="FILTERED", help=".jsonl file for the clean training rows")
    leak.add_argument("--overwrite", action="store_true", help="replace FILTERED")
    leak.add_argument("--json", action="store_true", help="print one JSON object")
    pair = actions.add_parser("pairs", help="translation pairs out of the same texts in several languages",
                              allow_abbrev=False)  # fmt: skip
    plain = translation_pairs.Settings()
    pair.add_argument("sources", nargs="+", metavar="SRC", help="a folder with a file per language, or files: "
                      "de.jsonl, deu-eng.tsv, deu.txt, de:ANY_NAME")  # fmt: skip
    pair.add_argument("target", metavar="DST", help="a .jsonl file")
    pair.add_argument("--languages", default="", help="codes with commas between; default: all that there are")
    pair.add_argument("--pivot", default=plain.pivot, help="one side of every pair; default: %(default)s")
    pair.add_argument("--task", choices=translation_pairs.TASKS, default=plain.task, help="default: %(default)s")
    pair.add_argument("--direction", choices=translation_pairs.DIRECTIONS, default=plain.direction,
                      help="default: %(default)s")  # fmt: skip
    pair.add_argument("--template", default=plain.template, help="the order, with {source}, {target} and {text} in it")
    pair.add_argument("--same_numerals", action="store_true", help="leave out pairs whose numerals differ")
    pair.add_argument("--limit", type=int, default=0, help="use the first rows of each file only")
    pair.add_argument("--overwrite", action="store_true", help="replace DST")
    for action in (look, write):
        action.add_argument("--type", default="", choices=("", *rows.NEEDS), help="the row type to read the file as")
        action.add_argument("--rename", action="append", default=[], metavar="OLD:NEW", help="rename a column")
        action.add_argument("--limit", type=int, default=0, help="use the first rows only")
    return parser


def _section(arguments: argparse.Namespace) -> DataSection:
    for name, least in (("limit", 0), ("max_length", 1)):
        if getattr(arguments, name, least) < least:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least {least}")
    return DataSection(rename=tuple(arguments.rename), limit=arguments.limit, on_bad_row="skip")


def check(arguments: argparse.Namespace) -> int:
    """Read, encode if there is a tokenizer, and print the report."""
    section = _section(arguments)
    found = readers.scan(arguments.source, section, arguments.type)
    if not found.records:
        raise DataError(f"{arguments.source}: 0 records")
    report: dict[str, Any] = {"type": found.type, "format": found.format, "records": found.records}
    dropped, kept = found.dropped, found.rows
    lengths, shown = [len(_characters(row)) for row in kept], []
    if arguments.tokenizer and kept:
        section = DataSection(max_length=arguments.max_length, overlong=arguments.overlong)
        loaded = tokenizer.load(arguments.tokenizer, chat_template=arguments.chat_template)
        renderer = text.Renderer(loaded, section)
        render = renderings(renderer, found.type, arguments.render)
        lengths, names, overlong = _encode(kept, render, dropped)
        shown = [row for row in kept if row["id"] in names][:SHOWN]
        report |= {"max_length": section.max_length, "shortened": sum(renderer.counts.values())}
        report |= {"overlong": overlong, "notes": list(loaded.notes)}
        kept = [row for row in kept if row["id"] in names]
    report |= {"rows": len(kept) + dropped.total, "usable": len(kept)}
    report["dropped"] = {reason: count for reason, (count, _) in dropped.items()}
    report["first_dropped"] = {reason: first for reason, (_, first) in dropped.items()}
    report |= {"duplicates": found.notes.total, "refused": found.refused}
    report["lengths"] = {"unit": "tokens" if arguments.tokenizer else "characters", **_summary(lengths)}
    if arguments.against:
        other = readers.read(arguments.against, DataSection(on_bad_row="skip"))
        report["overlap"] = readers.overlap(other.rows, kept)
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print(arguments, report, lengths)
        if shown:
            _show(shown, render, renderer)
    return 0 if kept else DataError.exit_code


Rendering = tuple[Sequence[int], Sequence[float]]


def renderings(renderer: text.Renderer, kind: str, how: str = "auto") -> Callable[[Mapping[str, Any]], list[Rendering]]:
    """The function from a row to what a model would be given: (ids, mask), one or (for answer by answer) two."""
    if kind == rows.PREFERENCE and how == "completion":
        return lambda row: list(renderer.completion_pair(row["prompt"], row["chosen"], row["rejected"]))
    if kind == rows.PREFERENCE:
        _ = renderer.verdict_ids

        def judge(row: Mapping[str, Any]) -> list[Rendering]:
            ids = renderer.judge(row["prompt"], row["chosen"], row["rejected"])
            return [(ids, [0.0] * len(ids))]

        return judge
    if kind == rows.PAIR_UNLABELLED:
        return lambda row: [renderer.pair_text(row["prompt"], *row["responses"])]
    if kind == rows.RATIONALE:
        complete = renderings(renderer, rows.PROMPT_COMPLETION)
        return lambda row: complete(judge_prompts.judge_row(row))
    if kind == rows.PROMPT_ONLY:
        return lambda row: [(ids := renderer.prompt(row["prompt"]), [0.0] * len(ids))]
    if kind == rows.STEPWISE:
        return lambda row: [renderer.completion(row["prompt"], "\n".join(row["completions"]))]
    return lambda row: [(e.tokens[0].tolist(), e.loss_mask[0].tolist()) for e in [renderer.example(row)]]


def _encode(
    kept: Sequence[Mapping[str, Any]], render: Callable[[Mapping[str, Any]], list[Rendering]], dropped: rows.Tally
) -> tuple[list[int], set[str], list[int]]:
    """(lengths, ids of the rows that can be encoded, lengths of the over-long ones); adds to `dropped`."""
    lengths, names, overlong = [], set(), []
    for row in kept:
        try:
            lengths.append(max(len(ids) for ids, _ in render(row)))
            names.add(row["id"])
        except rows.Drop as drop:
            dropped.add(drop.args[0], row["id"])
            if drop.length:
                overlong.append(drop.length)
        except DataError as error:
            dropped.add("cannot be rendered", f"{row['id']}: {error}")
    return lengths, names, overlong


def _characters(row: Mapping[str, Any]) -> str:
    names = ("text", "messages", "prompt", "chosen", "rejected", "completion", "responses", "rationale")
    parts = [row.get(name) for name in names]

    def flat(value: Any) -> str:
        if isinstance(value, list):
            return "".join(flat(item) for item in value)
        return value["content"] if isinstance(value, Mapping) else str(value or "")

    return flat(parts)


def _summary(lengths: Sequence[int]) -> dict[str, Any]:
    if not lengths:
        return {}
    ordered = sorted(lengths)
    at = {f"p{q}": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 90, 99)}
    edges = histogram(ordered)
    return {"min": ordered[0], **at, "max": ordered[-1], "histogram": {str(edge): count for edge, count in edges}}


def histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(upper edge, count): edges are powers of two and the halves between, from the shortest to the longest."""
    counted: collections.Counter[int] = collections.Counter()
    for length in lengths:
        power = 1 << max(length - 1, 1).bit_length()
        counted[power * 3 // 4 if length <= power * 3 // 4 else power] += 1
    return sorted(counted.items())


def _print(arguments: argparse.Namespace, report: Mapping[str, Any], lengths: Sequence[int]) -> None:
    kind = report["type"] or "unknown"
    written = "" if report["format"] == "trl" else f" (read from {report['format']} form)"
    print(f"{arguments.source}: {kind} rows{written}")
    print(f"usable    {report['usable']:,} of {report['rows']:,} rows from {report['records']:,} records")
    for reason, count in report["dropped"].items():
        print(f"dropped   {count:,} {reason}; first: {report['first_dropped'][reason]}")
    if report["refused"]:
        print(
            f"          training stops at {report['refused']:,} of these; --config.data.on_bad_row=skip leaves them out"
        )
    if report.get("overlong"):
        median = sorted(report["overlong"])[len(report["overlong"]) // 2]
        print(
            f"          the median of the over-long rows is {median:,} tokens (--max_length is {report['max_length']})"
        )
    if report.get("shortened"):
        print(f"shortened {report['shortened']:,} rows ({arguments.overlong})")
    if report["duplicates"]:
        print(f"repeated  {report['duplicates']:,} rows occur before with the same content (kept)")
    if "overlap" in report:
        print(f"leak      {report['overlap']:,} rows have a prompt that is also in {arguments.against}")
    for note in report.get("notes", ()):
        print(f"tokenizer {note}")
    facts = report["lengths"]
    if lengths:
        print(f"{facts['unit']:<9} min {facts['min']:,}  median {facts['p50']:,}  90% {facts['p90']:,}  "
              f"99% {facts['p99']:,}  max {facts['max']:,}")  # fmt: skip
        edges = histogram(lengths)
        most = max(count for _, count in edges)
        for edge, count in edges:
            print(f"  <= {edge:>7,} {'#' * max(1, BAR * count // most):<{BAR}} {count:,}")


def visible(renderer: text.Renderer, ids: Sequence[int], mask: Sequence[float]) -> str:
    """The text of ids with special tokens as they are written, and what is scored between the marks ⟦ and ⟧."""
    out, start = [], 0
    while start < len(ids):
        stop = start
        while stop < len(ids) and (mask[stop] > 0) == (mask[start] > 0):
            stop += 1
        piece = renderer.tokenizer.decode(ids[start:stop])
        out.append(f"⟦{piece}⟧" if mask[start] > 0 else piece)
        start = stop
    return "".join(out)


def _show(
    kept: Sequence[Mapping[str, Any]], render: Callable[[Mapping[str, Any]], list[Rendering]], renderer: text.Renderer
) -> None:
    for row in kept:
        for ids, mask in render(row):
            print(f"\n--- {row['id']}: {len(ids)} tokens, {sum(m > 0 for m in mask)} scored (between ⟦ and ⟧), "
                  f"ids {[int(i) for i in ids[:8]]} ...")  # fmt: skip
            print(visible(renderer, ids, mask))


def convert(arguments: argparse.Namespace) -> int:
    """Write the usable rows as JSON lines with TRL's names; what is left out is printed with its count."""
    target = _new_file(arguments.target, arguments.overwrite, (arguments.source,))
    found = readers.scan(arguments.source, _section(arguments), arguments.type)
    if not found.rows:
        raise DataError(
            readers.nothing_usable(arguments.source, found) if found.records else f"{arguments.source}: 0 records"
        )
    _write(target, found.rows)
    print(f"{len(found.rows):,} {found.type} rows -> {target}")
    for reason, (count, first) in found.dropped.items():
        print(f"left out {count:,} {reason}; first: {first}", file=sys.stderr)
    return 0


def pairs(arguments: argparse.Namespace) -> int:
    """Write translation pairs as rows with `prompt` and `completion`; what is left out is printed with its count."""
    target = _new_file(arguments.target, arguments.overwrite, arguments.sources)
    settings = translation_pairs.Settings(
        pivot=arguments.pivot,
        languages=tuple(word.strip() for word in arguments.languages.split(",") if word.strip()),
        task=arguments.task,
        direction=arguments.direction,
        template=arguments.template,
        same_numerals=arguments.same_numerals,
    )
    made = translation_pairs.read(arguments.sources, settings, DataSection(limit=arguments.limit, on_bad_row="skip"))
    _write(target, made.rows)
    print(f"{len(made.rows):,} translation pairs -> {target}")
    print("  " + "   ".join(f"{direction} {count:,}" for direction, count in made.counts().items()))
    for reason, (count, first) in made.dropped.items():
        print(f"left out {count:,} {reason}; first: {first}", file=sys.stderr)
    return 0


def _new_file(name: str, overwrite: bool, sources: Sequence[str]) -> Path:
    """The file to write. Raises UserError for one that is there, or is read: rows that are left out would be lost."""
    target = Path(name)
    if target.exists() and any(Path(source).exists() and target.samefile(source) for source in sources):
        raise UserError(f"{target} is read, so it cannot be written too; give another file")
    if target.suffix != ".jsonl":
        raise UserError(f"{target}: the rows are written as .jsonl")
    if target.exists() and not overwrite:
        raise UserError(f"{target} exists; use --overwrite to replace it")
    return target


def _write(target: Path, kept: Sequence[Mapping[str, Any]]) -> None:
    """Rows as JSON lines, whole or not at all; empty columns are left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for row in kept:
            plain = {name: value for name, value in row.items() if value not in (None, "") or name == "prompt"}
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
    partial.replace(target)


def contaminated(arguments: argparse.Namespace) -> int:
    """Compare the prompts of two sets of files, say what they share, and write the training rows that share nothing."""
    if arguments.n < 1:
        raise UserError(f"--n is {arguments.n}; a run has at least one word")
    read = (*arguments.train, *arguments.eval)
    target = _new_file(arguments.output, arguments.overwrite, read) if arguments.output else None
    section = DataSection(on_bad_row="skip")
    sources = {
        name: [readers.read(source, section) for source in getattr(arguments, name)] for name in ("train", "eval")
    }
    train, evaluation = (
        [{**row, "id": f"{source}: {row['id']}"} if len(parts) > 1 else row
         for source, part in zip(getattr(arguments, name), parts) for row in part.rows]
        for name, parts in sources.items()
    )  # fmt: skip
    found = contamination.compare(train, evaluation, arguments.n)
    report = found.report()
    for name, parts in sources.items():
        unread = rows.Tally()
        for part in parts:
            unread.merge(part.dropped)
        report[name] |= {"files": getattr(arguments, name), "unread": unread.total}
    clean = [row for row in train if row["id"] not in found.contaminated]
    if target is not None:
        if not clean:
            raise DataError(f"every row of {', '.join(arguments.train)} shares its prompt with the evaluation")
        _write(target, clean)
        report["output"] = {"file": str(target), "rows": len(clean)}
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
        return 0
    for name, label in (("train", "training"), ("eval", "evaluation")):
        facts = report[name]
        print(f"{label:<11}{facts['contaminated']:,} of {facts['rows']:,} rows ({100 * facts['share']:.2f} %) share "
              f"{arguments.n} words in a row or a whole shorter prompt")  # fmt: skip
        notes = {
            "without_prompt": "have no words in the prompt",
            "short": f"have prompts of fewer than {arguments.n} words, compared whole",
            "unread": "were not looked at: unreadable, or without a use (ties, empty answers)",
        }
        for key, note in notes.items():
            if facts[key]:
                print(f"{'':<11}{facts[key]:,} rows {note}")
    for example in report["examples"]:
        print(f"  {example['train']} and {example['eval']}: {example['text'].removeprefix('= ')!r}")
    if target is not None:
        print(f"{len(clean):,} clean training rows -> {target}")
    return 0
