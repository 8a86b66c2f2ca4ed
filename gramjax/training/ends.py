"""The tokens that end an answer of a model."""

from pathlib import Path
from typing import Any

from gramjax.checkpoint import json_file
from gramjax.core.errors import DataError
from gramjax.data.tokenizer import Tokenizer


def end_ids_of(network: Any) -> tuple[int, ...]:
    """The tokens that end an answer of a model: those of its tokenizer and of the folder that its weights are in."""
    folder = Path(network.source.tokenizer_folder) if network.source and network.source.tokenizer_folder else None
    return end_ids(network.renderer.tokenizer, folder)


def end_ids(tokenizer: Tokenizer, folder: Path | None = None) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json (else config.json)."""
    found = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for name in ("generation_config.json", "config.json"):
        path = folder / name if folder else None
        if path is not None and path.is_file():
            given = json_file.read(path).get("eos_token_id")
            if given is not None:
                ids = given if isinstance(given, list) else [given]
                if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
                    raise DataError(f"{path}: eos_token_id is {given!r:.80}; ids of tokens were expected")
                found += ids
                break
    return tuple(dict.fromkeys(found))
