"""A model opened for sampling: what every job that draws answers begins with."""

from pathlib import Path
from typing import Any

from gramjax.checkpoint import json_file
from gramjax.core import config as configs
from gramjax.core.config import GenerationSection
from gramjax.data.tokenizer import Tokenizer
from gramjax.generation.sampler import Sampler
from gramjax.training import setup


def open_sampler(config: Any) -> Sampler:
    """The model of `config.model`, loaded and packed for decoding. Raises UserError when it has no vocabulary head."""
    network = setup.open_network(config, heads=("tokens",))
    settings = configs.section(config.generation, GenerationSection, "generation")
    model = network.model
    weights = model.pack_for_decoding(setup.load_for_use(network, config.seed), settings.gather_weights)
    return Sampler(model, weights, network.renderer, end_ids_of(network), settings)


def end_ids_of(network: setup.Network) -> tuple[int, ...]:
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
                found += given if isinstance(given, list) else [given]
                break
    return tuple(dict.fromkeys(int(token) for token in found))
