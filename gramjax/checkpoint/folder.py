"""The files of a model folder that are not weights, and the way a folder appears at once and complete."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from gramjax.checkpoint import json_file
from gramjax.core.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
)

LISA_CODE = "lisa_torch.py"
"""What runs a folder with shared attention where only torch is at hand."""

OURS = (
    *TOKENIZER_FILES,
    LISA_CODE,
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "additional_chat_templates",
    "checkpoints",
    "tokenizer",
    "README.md",
)
"""What a folder may hold to be overwritten: anything else belongs to somebody."""


@contextlib.contextmanager
def replacing(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place when the block ends well, and vanishes when it does not.

    Raises UserError when `folder` exists with files in it, unless `overwrite`; even then when it holds files that no
    model folder has.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists():
        names = sorted(os.listdir(folder)) if folder.is_dir() else [folder.name]
        foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in OURS)]
        if not folder.is_dir() or foreign:
            raise UserError(f"{folder} holds {(foreign or names)[0]}, which is no part of a model: give another folder")
        if names and not overwrite:
            raise UserError(f"{folder} exists and holds a model; give another folder or --overwrite")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, Mapping) else token


def token_ids(folder: str | Path) -> dict[str, int]:
    """`pad_token_id`, `bos_token_id`, `eos_token_id` of a tokenizer folder, as far as it names them."""
    folder = Path(folder)
    settings = json_file.read(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    special = folder / "special_tokens_map.json"
    if special.exists():
        settings = {**json_file.read(special), **settings}
    vocabulary: dict[str, int] = {}
    if (folder / "tokenizer.json").exists():
        content = json_file.read(folder / "tokenizer.json")
        model = content.get("model", {}).get("vocab", {})
        if isinstance(model, Mapping):
            vocabulary.update(model)
        else:  # Unigram: pairs of text and score
            vocabulary.update({pair[0]: i for i, pair in enumerate(model)})
        vocabulary.update({token["content"]: token["id"] for token in content.get("added_tokens", [])})
    out = {}
    for kind in ("pad", "bos", "eos"):
        text = _text(settings.get(f"{kind}_token"))
        if text is not None and text in vocabulary:
            out[f"{kind}_token_id"] = int(vocabulary[text])
    return out


def carry_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy the tokenizer files and the chat template, in a form that transformers 4 and 5 load; returns notes.

    Raises UserError when there is no tokenizer in `source`.
    """
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"tokenizer.json", "tokenizer.model", "vocab.json"} & set(names):
        raise UserError(f"{source}: no tokenizer there (tokenizer.json)")
    for name in names:
        shutil.copyfile(source / name, target / name)
    templates = source / "additional_chat_templates"
    if templates.is_dir():
        shutil.copytree(templates, target / templates.name)
    if "tokenizer.json" not in names:
        return [f"{source} has no tokenizer.json: its files are copied as they are"]
    path = target / "tokenizer_config.json"
    settings = json_file.read(path) if path.exists() else {}
    # Version 5 writes a class and a list of tokens that version 4 cannot load; both read this form.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    for name in ("auto_map", "backend", "is_local"):
        settings.pop(name, None)
    json_file.write(path, settings)
    return []


def write_generation_config(source: str | Path | None, target: Path, ids: Mapping[str, Any]) -> None:
    """`generation_config.json`: the one beside the tokenizer when there is one, else the token ids."""
    there = Path(source) / "generation_config.json" if source else None
    values = json_file.read(there) if there and there.exists() else {"_from_model_config": True}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if values.get(name) is None and ids.get(name) is not None:
            values[name] = ids[name]
    json_file.write(target / "generation_config.json", values)
