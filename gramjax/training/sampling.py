"""A model opened for sampling: what every job that draws answers begins with."""

from typing import Any

from gramjax.core import config as configs
from gramjax.core.config import GenerationSection
from gramjax.generation.sampler import Sampler
from gramjax.training import setup
from gramjax.training.ends import end_ids_of


def open_sampler(config: Any) -> Sampler:
    """The model of `config.model`, loaded and packed for decoding. Raises UserError when it has no vocabulary head."""
    network = setup.open_network(config, heads=("tokens",))
    settings = configs.section(config.generation, GenerationSection, "generation")
    model = network.model
    weights = model.pack_for_decoding(setup.load_for_use(network, config.seed), settings.gather_weights)
    return Sampler(model, weights, network.renderer, end_ids_of(network), settings)
