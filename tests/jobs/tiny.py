"""A training that takes seconds: a one-layer judge (or scalar model) on generated pairs. `tiny.py:bradley_terry`."""

from ml_collections import ConfigDict

from gramjax.core.config import defaults
from gramjax.data.recipes import word_translation


def get_config(objective: str = "generative_preference") -> ConfigDict:
    config = defaults(objective, evals=("preference",))
    config.tokenizer.path = "recipe:word_translation"
    config.data.train = ("recipe:word_translation:train:100",)
    config.data.valid = ("recipe:word_translation:valid:40",)
    config.data.max_length = word_translation.MAX_LENGTH
    config.data.judge_prompt = word_translation.JUDGE_PROMPT
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 16, 32, 2
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 2, 1, 8
    config.optim.lr = 1e-3
    config.train.batch_size = 8
    config.train.steps = 6
    config.train.log_every = 1
    config.log.tensorboard, config.log.report = False, False
    return config
