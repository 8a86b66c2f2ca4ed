"""A preference-proving model of the permutation world that has learned the form of a proof, trained in seconds."""

from ml_collections import ConfigDict

from gramjax.core.config import defaults
from gramjax.data.recipes import permutation_world as world


def get_config() -> ConfigDict:
    config = defaults("rationale_preference")
    config.objective.part = "prover"
    config.objective.instruction = world.PROVER_PROMPT
    config.tokenizer.path = "recipe:permutation_world"
    config.data.train = ("recipe:permutation_world:train:64",)
    config.data.max_length = world.MAX_LENGTH
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 32, 64, 2
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 2, 2, 16
    arch.init_scale = 0.06
    arch.max_position_embeddings = 64
    config.optim.lr = 1e-2
    config.optim.betas = (0.9, 0.98)
    config.train.batch_size = 16
    config.train.steps = 120
    config.train.remat = "none"
    config.train.log_every = 50
    config.log.tensorboard, config.log.report = False, False
    return config
