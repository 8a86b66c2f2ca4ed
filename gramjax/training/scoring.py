"""A reward model opened for use: what scoring, ranking and serving begin with."""

import dataclasses
from typing import Any

import jax

from gramjax.checkpoint import source as weight_source
from gramjax.core import config as configs
from gramjax.core.config import ReferenceSection, ScoreSection
from gramjax.core.errors import UserError
from gramjax.models import lora
from gramjax.scoring import reward_model
from gramjax.scoring.reading import Layout
from gramjax.scoring.reward_model import RewardModel, Settings
from gramjax.training import reference as references
from gramjax.training import setup


def open_reward_model(config: Any, settings: Settings = Settings(), layout: Layout = Layout()) -> RewardModel:
    """The model of `config.model`, loaded and packed, with the reference that `config.reference` names for an implicit
    reward. Raises UserError for settings that do not fit it."""
    network = setup.open_network(config)
    kind = reward_model.check(network.model, settings)
    section = configs.section(config.get("reference", {}), ReferenceSection, "reference")
    if section.path and kind != "implicit":
        raise UserError(f"config.reference.path is given, but a reward by {kind} looks at no reference: leave it out")
    weights = jax.jit(network.model.pack)(setup.load_for_use(network, config.seed))
    reference = load_reference(network, section) if section.path else None
    return reward_model.build(network.model, weights, network.renderer, settings, layout, reference=reference)


def load_reference(network: setup.Network, section: ReferenceSection) -> Any:
    """The packed weights of a reference, in the shape of the network that it is compared with."""
    source = weight_source.open_source(section.path, section.step or None)
    references.check_same(source.config, network.model.config)
    own = dataclasses.replace(network.model, config=dataclasses.replace(source.config, heads=references.HEADS))
    params = setup.load_for_use(dataclasses.replace(network, model=own, source=source))
    plain = dataclasses.replace(own, config=lora.off(own.config))
    return jax.jit(plain.pack)(lora.merge(params, own.config))


def settings_of(section: ScoreSection) -> tuple[Settings, Layout]:
    """The scoring settings and the batches of `config.score`."""
    settings = reward_model.settings_of(section)
    return settings, Layout(section.batch_size, section.buckets, section.share)
