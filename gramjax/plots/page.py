"""Pieces of a page: escaped text, tables, headline numbers, figures inside the page. Every value is escaped here."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gramjax.plots.style import Drawn

STYLE = """
:root { --ink: #1f2430; --muted: #6b7280; --line: #e5e7eb; --soft: #f6f7f9; --blue: #0072b2; --red: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 14px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
h3 { font-size: 15px; margin: 22px 0 4px; } figure h3 { margin-top: 0; }
p { margin: 6px 0; max-width: 78ch; } .muted { color: var(--muted); } small { color: var(--muted); }
code, pre { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.badge { display: inline-block; font-size: 12px; font-weight: 600; border-radius: 99px; padding: 1px 10px;
  background: #e6f4ee; color: #00664b; vertical-align: 5px; margin-left: 8px; }
.badge.open { background: #fdf1e3; color: #9a4500; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 22px 0 8px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.card b { display: block; font-size: 26px; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.card span { font-size: 13px; color: var(--muted); display: block; }
.card span.name { color: var(--ink); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 28px 32px;
  align-items: start; }
figure { margin: 0; } figure.wide { grid-column: 1 / -1; } figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: 13.5px; color: var(--muted); margin-top: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin: 8px 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; font-size: 13px; color: var(--muted); white-space: nowrap; } .n { text-align: right; }
a { color: var(--blue); }
@media (max-width: 560px) { .figures { grid-template-columns: 1fr; } main { padding: 24px 16px 60px; } }
@media print { main { padding: 0; } figure, .card { break-inside: avoid; } }
"""

WIDE = ("training", "overlay", "rounds_accuracy", "rounds_filters", "best_of_n", "adaptation", "rm_bench")
"""Figures that take the whole width (names that start so)."""


def e(value: Any) -> str:
    """A value as escaped text; numbers with four digits, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return html.escape(str(value))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table; columns whose values are all numbers stand right."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    right = [all(isinstance(row[i], int | float | None.__class__) for row in rows) for i in range(len(head))]
    classes = ['class="n"' if r else "" for r in right]
    top = "".join(f"<th {c}>{e(name)}</th>" for name, c in zip(head, classes))
    body = "".join("<tr>" + "".join(f"<td {c}>{e(v)}</td>" for v, c in zip(row, classes)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def percent(value: Any) -> str:
    """A share as text."""
    return "–" if value is None else f"{100 * value:.1f} %"


def card(name: str, value: str, note: str = "") -> str:
    """One headline number."""
    return f'<div class="card"><span class="name">{e(name)}</span><b>{e(value)}</b><span>{e(note)}</span></div>'


def picture(drawn: Drawn, beside: Path) -> str:
    """A figure with its picture inside the page, and a link to the numbers behind it."""
    data = base64.b64encode(drawn.picture.read_bytes()).decode()
    wide = ' class="wide"' if drawn.name.startswith(WIDE) else ""
    source = link(drawn.numbers, beside, "numbers")
    return (
        f'<figure{wide}><h3>{e(drawn.title)}</h3><img alt="{e(drawn.title)}: {e(drawn.caption)}" '
        f'src="data:image/png;base64,{data}"><figcaption>{e(drawn.caption)} {source}</figcaption></figure>'
    )


def link(target: Path, beside: Path, text: str = "") -> str:
    """A link from the page to a file, relative where both are in one tree."""
    try:
        address = target.resolve().relative_to(beside.resolve()).as_posix()
    except ValueError:
        address = target.resolve().as_uri()
    return f'<a href="{html.escape(address, quote=True)}">{e(text or address)}</a>'
