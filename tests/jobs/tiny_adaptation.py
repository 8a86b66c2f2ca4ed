"""An adaptation curve in seconds: a one-layer judge of generated pairs, from random weights."""

from ml_collections import ConfigDict

from gramjax.core import config as configs
from gramjax.data.recipes import word_translation


def get_config() -> ConfigDict:
    config = configs.for_recipe("adaptation_curve", evals=("preference",))
    configs.with_plugin(config, "objective", "objectives", "generative_preference")
    config.tokenizer.path = "recipe:word_translation"
    config.data.valid = ("recipe:word_translation:valid:20",)
    config.data.max_length = word_translation.MAX_LENGTH
    config.data.judge_prompt = word_translation.JUDGE_PROMPT
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 16, 32, 1
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 2, 1, 8
    config.optim.lr = 1e-2
    config.train.batch_size, config.train.epochs, config.train.log_every = 8, 2.0, 1
    config.train.remat = "none"
    config.log.tensorboard, config.log.report = False, False
    config.recipe.rows = "recipe:word_translation:train:40"
    config.recipe.starts = ("scratch:",)
    config.recipe.budgets, config.recipe.seeds, config.recipe.most_steps = (8, 32), (0,), 4
    return config
