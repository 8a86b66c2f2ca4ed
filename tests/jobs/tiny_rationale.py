"""A judge that answers in the trained form after seconds: two small layers, labels of the permutation world only."""

from ml_collections import ConfigDict

from gramjax.core.config import defaults
from gramjax.data.recipes import permutation_world as world


def get_config() -> ConfigDict:
    config = defaults("rationale_preference", evals=("rationale",))
    config.objective.part = "label"
    config.objective.instruction = world.JUDGE_PROMPT
    config.tokenizer.path = "recipe:permutation_world"
    config.data.train = ("recipe:permutation_world:train:64",)
    config.data.valid = ("recipe:permutation_world:valid:20",)
    config.data.max_length = world.MAX_LENGTH
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 32, 32, 1
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 2, 1, 8
    config.optim.lr = 2e-2
    config.train.batch_size = 16
    config.train.steps = 30
    config.log.tensorboard, config.log.report = False, False
    judging = config.evals.rationale.judging
    judging.instruction, judging.sampling.max_tokens, judging.sampling.n = world.JUDGE_PROMPT, 8, 3
    config.evals.rationale.generation.slots = 16
    return config
