"""A model opened for sampling, and rows as requests: what every job that draws answers begins with."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from gramjax.checkpoint import json_file
from gramjax.core import config as configs
from gramjax.core import sharding, spec
from gramjax.core.config import GenerationSection
from gramjax.core.errors import DataError
from gramjax.data.rows import LANGUAGE_MODELING, PROMPT_ONLY, Drop
from gramjax.data.text import Renderer
from gramjax.data.tokenizer import Tokenizer
from gramjax.generation.request import Request, Sampling
from gramjax.generation.sample import Completion, Statistics, Watch, generate
from gramjax.training import setup

ROW_TYPES = (PROMPT_ONLY, LANGUAGE_MODELING)
"""Rows that can be continued: a prompt (text or messages), or messages or text themselves."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model with weights packed for decoding, its renderer, and its end tokens."""

    network: setup.Network
    weights: Any
    end_ids: tuple[int, ...]
    settings: GenerationSection

    @property
    def renderer(self) -> Renderer:
        """Turns rows into prompts."""
        return self.network.renderer

    def decode(self, ids: Any) -> str:
        """Text of an answer, special tokens left out."""
        return self.renderer.tokenizer.decode(ids, skip_special=True)

    def generate(
        self, requests: Iterable[Request | None], statistics: Statistics | None = None, watch: Watch | None = None
    ) -> Iterator[Completion]:
        """`generation.sample.generate` with this model."""
        return generate(self.network.model, self.weights, requests, self.settings, self.decode, statistics, watch)


def open_sampler(config: Any) -> Sampler:
    """The model of `config.model`, loaded and packed for decoding. Raises UserError when it has no vocabulary head."""
    network = setup.open_network(config, heads=("tokens",))
    settings = configs.section(config.generation, GenerationSection, "generation")
    model = network.model
    places = sharding.shardings(model.specs(), network.mesh)

    def dtype(leaf: spec.Spec) -> Any:
        return model.compute_dtype if len(leaf.shape) >= 2 and leaf.shape[-1] > 1 else jnp.dtype(jnp.float32)

    dtypes = spec.map_specs(dtype, model.specs())
    if network.source is None:
        loaded = setup.load_params(model, None, places, dtypes, config.seed)
    else:  # a vocabulary head that is not there cannot be made up
        loaded = network.source.load(model.specs(), model.config, places, dtypes)
    for note in loaded.notes:
        print(f"gramjax: {note}", file=sys.stderr)
    weights = model.pack_for_decoding(loaded.params, settings.gather_weights)
    folder = Path(network.source.tokenizer_folder) if network.source and network.source.tokenizer_folder else None
    return Sampler(network, weights, end_ids(network.renderer.tokenizer, folder), settings)


def end_ids(tokenizer: Tokenizer, folder: Path | None = None) -> tuple[int, ...]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json (else config.json)."""
    found = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for name in ("generation_config.json", "config.json"):
        path = folder / name if folder else None
        if path is not None and path.is_file():
            given = json_file.read(path).get("eos_token_id")
            if given is not None:
                found += given if isinstance(given, list) else [given]
                break
    return tuple(dict.fromkeys(int(token) for token in found))


def prompt_of(row: Mapping[str, Any]) -> Any:
    """The prompt of a row: text or messages."""
    for name in ("prompt", "messages", "text"):
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"row {row.get('id')!r} has no 'prompt', 'messages' or 'text'")


def requests(
    rows: Iterable[Mapping[str, Any]],
    sampler: Sampler,
    sampling: Sampling,
    seed: int,
    refused: Callable[[Mapping[str, Any], str], None] | None = None,
) -> Iterator[Request]:
    """A request per row, in order, made when it is asked for; its `columns` are the row.

    A row whose prompt the length policy refuses is given to `refused` with the reason, or raised as a DataError.
    """
    for row in rows:
        extra = dict(row.get("chat_template_kwargs") or {})
        if row.get("tools"):
            extra["tools"] = row["tools"]
        try:
            tokens = sampler.renderer.prompt(prompt_of(row), **extra)
        except Drop as drop:
            if refused is None:
                raise DataError(f"row {row.get('id')!r}: {drop.args[0]} (config.data.max_length)") from None
            refused(row, drop.args[0])
            continue
        yield Request(tokens, row["id"], sampling, seed, sampler.end_ids, columns=row)
