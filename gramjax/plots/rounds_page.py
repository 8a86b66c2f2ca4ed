"""The page of a self-training recipe around its figures: headline numbers, tables, and rationales to read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gramjax.plots import files
from gramjax.plots.page import card, e, percent, table
from gramjax.plots.rounds import Number, Round, in_order, listed, mapping, number, part, read, reasons


def headline(state: Mapping[str, Any]) -> str:
    """The cards on top: accuracy of the first and the last round, precision and share of the labels kept."""
    rounds = read(state)
    tested = [r for r in rounds if r.accuracy is not None and not r.is_final]
    cards = [_accuracy_card(r) for r in [*tested[:1], *tested[1:][-1:]]]
    cards += [_accuracy_card(r) for r in rounds if r.is_final and r.accuracy is not None]
    precise = [r for r in rounds if r.kept is not None or r.vote is not None]
    if precise:
        r = precise[-1]
        note = f"{r.name}; before filtering {percent(r.vote)}, one draw {percent(r.one_draw)}"
        cards.append(card("Pseudo-label precision", percent(r.kept), note))
    shares = [r for r in rounds if r.kept_share is not None]
    if shares:
        r = shares[-1]
        of = "" if r.num_unlabelled is None else f", of {r.num_unlabelled:,} pairs"
        cards.append(card("Kept share", percent(r.kept_share), f"{r.name}{of}"))
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _accuracy_card(found: Round) -> str:
    note = "" if found.low is None else f"95 % interval {percent(found.low)} to {percent(found.high)}"
    pairs = "" if found.num_pairs is None else f"{found.num_pairs:,} pairs"
    return card(f"Test accuracy, {found.name}", percent(found.accuracy), ", ".join(t for t in (note, pairs) if t))


def sections(state: Mapping[str, Any]) -> str:
    """Everything below the figures: rounds, filters with reasons, steps, rationales."""
    rounds = read(state)
    parts = [
        ("Rounds", _rounds_table(rounds)),
        ("Pseudo-labels", _labels_table(rounds)),
        ("Filters", _filter_table(rounds)),
        ("Left out", _reason_table(state, rounds)),
        ("Rationales", "".join(_rationale(mapping(row, "rationales")) for row in listed(state, "rationales"))),
        ("Steps", _steps(state)),
    ]
    return "".join(f"<h2>{name}</h2>{text}" for name, text in parts if text)


def _rounds_table(rounds: Sequence[Round]) -> str:
    """What each round was trained on and reached."""
    head = ("round", "trained on", "test accuracy", "95 % interval", "pairs", "unreadable draws", "agreement of draws")
    rows = []
    for r in rounds:
        interval = None if r.low is None else f"{percent(r.low)} to {percent(r.high)}"
        rows.append((r.name, r.num_train, percent(r.accuracy), interval, r.num_pairs, r.num_unreadable,
                     percent(r.agreement)))  # fmt: skip
    return table(head, rows)


def _labels_table(rounds: Sequence[Round]) -> str:
    """What the pseudo-labels of each round were worth."""
    head = ("round", "judged", "gold known", "one draw right", "vote right", "kept right", "kept", "kept with label A")
    rows = []
    for r in rounds:
        shares = (r.one_draw, r.vote, r.kept, r.kept_share, r.share_of_a)
        if r.num_unlabelled is not None or any(value is not None for value in shares):
            rows.append((r.name, r.num_unlabelled, r.num_gold, *map(percent, shares)))
    return table(head, rows)


def _filter_table(rounds: Sequence[Round]) -> str:
    rows = [
        (r.name, f.name, f.before, f.after, percent(f.after / f.before if f.before else None),
         percent(f.after / r.filters[0].before if r.filters[0].before else None))
        for r in rounds for f in r.filters
    ]  # fmt: skip
    return table(("round", "filter", "before", "after", "passed", "of all judged"), rows)


def _reason_table(state: Mapping[str, Any], rounds: Sequence[Round]) -> str:
    """Why rows were left out, everywhere."""
    rows: list[Any] = [(None, name, *reason) for name in ("prover", "proofs") for reason in reasons(part(state, name))]
    for r in rounds:
        rows += [(r.name, f.name, *reason) for f in r.filters for reason in f.dropped]
        rows += [(r.name, "training", *reason) for reason in r.dropped]
    proofs = part(state, "proofs")
    known = [(name, number(proofs.get(name))) for name in ("num_rows", "kept", "kept_share", "mean_score")]
    return _proofs(dict(known)) + table(("round", "step", "left out because", "rows", "first"), rows)


def _proofs(numbers: Mapping[str, Number | None]) -> str:
    if numbers["kept"] is None or numbers["num_rows"] is None:
        return ""
    score = "" if numbers["mean_score"] is None else f", mean score {e(float(numbers['mean_score']))}"
    text = f"{e(numbers['kept'])} of {e(numbers['num_rows'])} labelled pairs have a proof"
    return f"<p>{text} ({percent(numbers['kept_share'])}{score}).</p>"


def _steps(state: Mapping[str, Any]) -> str:
    steps = [mapping(step, "steps") for step in listed(state, "steps")]
    if not steps:
        return ""
    seconds = [number(step.get("seconds")) for step in steps]
    rows = []
    for step, took in zip(steps, seconds):
        summary = files.flat(dict(part(step, "summary")))
        text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in summary.items())
        rows.append((step.get("name"), step.get("verb"), "done" if step.get("done") else "not yet",
                     None if took is None else round(took, 1), text or None))  # fmt: skip
    head = ("step", "verb", "state", "seconds", "summary")
    used = [i for i in range(len(head)) if i < 4 or any(row[i] for row in rows)]
    done, total = sum(bool(step.get("done")) for step in steps), sum(took or 0 for took in seconds)
    shown = table([head[i] for i in used], [[row[i] for i in used] for row in rows])
    return f"<p>{done} of {len(steps)} steps are done, {total:,.0f} s in all.</p>{shown}"


def _rationale(row: Mapping[str, Any]) -> str:
    """One rationale with its pair; label and gold are marked."""
    label, gold = row.get("label"), row.get("gold")
    mark = ""
    if gold is not None and label is not None:
        mark = '<span class="badge">right</span>' if gold == label else '<span class="badge open">wrong</span>'
    parts = [f"<h3>{e(row.get('id'))}{mark}</h3>"]
    of = "" if row.get("round") is None else f" · R{e(row['round'])}"
    parts.append(f"<p>label <b>{e(label)}</b> · gold <b>{e(gold)}</b>{of}</p>")
    texts = [("Prompt", row.get("prompt"))]
    for letter, response in zip("AB", listed(row, "responses")):
        marks = [name for name, value in (("label", label), ("gold", gold)) if value == letter]
        texts.append((f"Response {letter}" + (f" ({', '.join(marks)})" if marks else ""), response))
    texts.append(("Rationale", row.get("rationale")))
    parts += [f"<p><small>{e(name)}</small></p><pre>{e(_text(text))}</pre>" for name, text in texts if text is not None]
    return "".join(parts)


def _text(value: Any) -> str:
    """A text, or the turns of a conversation."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(turn, Mapping) and "content" in turn for turn in value):
        return "\n".join(f"{turn.get('role', '')}: {turn['content']}" for turn in value)
    return json.dumps(value, ensure_ascii=False)


def comparison(one: Mapping[str, Any], two: Mapping[str, Any], names: tuple[str, str]) -> str:
    """Test accuracy of two recipes by round, the final tuning last."""
    both = [read(one), read(two)]
    first, second = ({r.name: r.accuracy for r in found} for found in both)
    rows = []
    for name in in_order(both):
        a, b = first.get(name), second.get(name)
        gap = None if a is None or b is None else f"{100 * (a - b):+.1f} points"
        rows.append((name, percent(a), percent(b), gap))
    return "<h3>Test accuracy by round</h3>" + table(("round", *names, "difference"), rows) if rows else ""
