"""A reward model opened for use: what scoring, ranking and serving begin with."""

from typing import Any

import jax

from gramjax.scoring import reward_model
from gramjax.scoring.reading import Layout
from gramjax.scoring.reward_model import RewardModel, Settings
from gramjax.training import setup


def open_reward_model(config: Any, settings: Settings = Settings(), layout: Layout = Layout()) -> RewardModel:
    """The model of `config.model`, loaded and packed. Raises UserError for settings that do not fit it."""
    network = setup.open_network(config)
    reward_model.check(network.model, settings)
    weights = jax.jit(network.model.pack)(setup.load_for_use(network, config.seed))
    return reward_model.build(network.model, weights, network.renderer, settings, layout)
