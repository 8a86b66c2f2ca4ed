"""What every setting means: the docstrings under the fields of the section dataclasses, as a table for people."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from typing import Any

from gramjax.core import checks, plugins
from gramjax.core.config import SECTIONS, fields


def field_docs(record: type) -> dict[str, str]:
    """The string under each field of a dataclass, "" where there is none; of one that it extends, those it changes."""
    shown = {field.name for field in fields(record)} & set(inspect.get_annotations(record))
    out = {field.name: "" for field in fields(record) if field.name in shown}
    body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0]
    assert isinstance(body, ast.ClassDef)
    for node, after in zip(body.body, body.body[1:]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id in out:
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                out[node.target.id] = " ".join(str(after.value.value).split())
    return out


def table(record: Any, prefix: str) -> list[str]:
    """Markdown rows for a section, nested sections included: setting, type, default, meaning."""
    hints, instance, docs = typing.get_type_hints(record), record(), field_docs(record)
    lines = []
    for name, doc in docs.items():
        default = getattr(instance, name)
        if dataclasses.is_dataclass(default):
            lines += table(type(default), f"{prefix}{name}.")
        else:
            meaning = doc.replace("|", "\\|")
            lines.append(f"| `{prefix}{name}` | {checks.describe(hints[name])} | `{default!r}` | {meaning} |")
    return lines


def pages() -> str:
    """The markdown of every section and of the plug-ins that exist, as `docs/configs.md` shows it."""
    records: list[tuple[str, str, Any]] = [(f"config.{name}", f"{name}.", record) for name, record in SECTIONS.items()]
    for kind, title, prefix in (
        ("models", "config.model.arch of `{}`", "model.arch."),
        ("objectives", "config.objective of `{}`", "objective."),
        ("evals", "config.evals.{}", "evals.{}."),
        ("rewards", "config.rewards.{}", "rewards.{}."),
        ("annotators", "config.annotator of `{}`", "annotator."),
        ("selection/rows", "config.selection of `{}`", "selection."),
        ("selection/layers", "config.selection of `{}`", "selection."),
        ("recipes", "config.recipe of `{}`", "recipe."),
    ):
        for name in plugins.names(kind):
            plugin = plugins.load(kind, name)
            if (section := getattr(plugin, "SECTION", "")) and plugin.Config is SECTIONS[section]:
                continue  # shown above
            heads = (f"config.{section} of `{name}`", f"{section}.") if section else (title.format(name), prefix)
            records.append((heads[0], heads[1].format(name), plugin.Config))
    blocks = []
    for title, prefix, record in records:
        summary = (record.__doc__ or "").strip().split("\n")[0]
        rows = table(record, prefix)
        if rows:
            blocks.append("\n".join([f"## {title}", "", summary, "", "| setting | type | default | meaning |",
                                     "|---|---|---|---|", *rows]))
    return "\n\n".join(blocks) + "\n"
