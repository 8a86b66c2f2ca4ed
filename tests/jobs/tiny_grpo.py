"""Reinforcement learning that takes seconds: a one-layer model that learns to write digits after sums.

`tiny_grpo.py:REWARD_FILE` names the file of the reward function `digits`.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config(reward: str) -> ConfigDict:
    config = configs.defaults("grpo")
    config.tokenizer.path = "bytes"
    config.data.train = ("recipe:modular_addition:solved:40",)
    config.data.max_length = 16
    config.data.packing = True
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 32, 64, 1
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 2, 1, 16
    arch.max_position_embeddings = 64
    config.optim.lr, config.optim.schedule, config.optim.warmup_ratio = 1e-2, "constant", 0.0
    config.train.remat, config.train.scan_layers = "none", False
    config.train.steps, config.train.log_every = 6, 1
    config.reward.functions = (f"{reward}:digits",)
    config.grpo.prompts_per_step, config.grpo.group_size = 4, 4
    config.grpo.completions_every = 2
    config.sampling.max_tokens = 4
    config.generation.slots, config.generation.steps_per_call, config.generation.prefill_rows = 16, 4, 4
    config.log.tensorboard, config.log.report = False, False
    return config
