"""A model opened to be read without sampling: what annotators with `OPENS = "network"` are given."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from gramjax.checkpoint import best
from gramjax.scoring.representations import Encoder
from gramjax.training import setup

HeadsOf = Callable[[Sequence[str]], tuple[str, ...]]
"""From the heads that a model has to those that it is opened with."""


def network_of(config: Any, heads_of: HeadsOf) -> setup.Network:
    """The model of `config.model` with the heads that are asked for."""
    network = setup.open_network(config)
    have = tuple(network.model.config.heads)
    wanted = heads_of(have)
    return network if wanted == have else setup.open_network(config, wanted)


def open_encoder(config: Any, heads_of: HeadsOf) -> Encoder:
    """The model of `config.model`, loaded and packed; a head that it does not have and is asked for is drawn."""
    network = network_of(config, heads_of)
    params = setup.load_for_use(network, config.seed, setup.FRESH)
    folder, _ = best.split(config.model.path)
    return Encoder(network.model, jax.jit(network.model.pack)(params), network.renderer, str(folder))
