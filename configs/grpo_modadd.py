"""GRPO from nothing: sums modulo 23, with a verifiable reward, in minutes on a CPU.

gramjax train --config=grpo_modadd --workdir=runs/modadd

A model of 0.2 million parameters sees worked answers for a short warm-up, until it is right about one time in three;
then it learns from its own answers alone, of which the reward says right or wrong. Every setting of the study is an
override: --config.grpo.samples=all|positive|negative, --config.grpo.loss=grpo|dr_grpo|dapo|gspo|cispo|...,
--config.reward.relative_length=True, --config.grpo.offline_fraction=0.125 (with
--config.data.train="('recipe:modular_addition:solved',)").
Hardware: 2 CPU cores, 3 minutes. Expected: `eval/math.json` with avg@k of at least 0.9 on the training prompts;
the curve of `reward` in metrics.jsonl rises from about 0.3.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = configs.defaults("grpo", evals=("math",), rewards=("verifiable",))
    config.tokenizer.path = "bytes"
    config.data.train = config.data.valid = ("recipe:modular_addition:train",)
    config.data.max_length = 16
    config.data.packing = True
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 64, 256, 2
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 4, 4, 16
    arch.init_scale = 0.06
    arch.max_position_embeddings = 64
    config.optim.schedule = "constant"
    config.optim.betas = (0.9, 0.98)
    config.train.remat, config.train.scan_layers = "none", False
    config.rewards.verifiable.kind = "exact"  # `number` would let it write anything before the number
    config.grpo.prompts_per_step = 64
    config.grpo.group_size = 16
    config.grpo.entropy_coef = 0.03
    config.grpo.completions_every = 50
    config.sampling.max_tokens = 4
    config.generation.slots = 1024
    config.generation.steps_per_call = 4
    config.generation.prefill_rows = 64
    config.evals.math.repeats = 16
    config.evals.math.sampling.max_tokens = 4
    config.evals.math.generation = config.generation.copy_and_resolve_references()
    warm_up = {
        "objective": {"name": "cross_entropy"},
        "data": {"train": ("recipe:modular_addition:worked",)},
        "train": {"steps": 260, "batch_size": 64, "evaluate": False},
        "optim": {"lr": 1e-3},
    }
    rollouts = {"train": {"steps": 300}, "optim": {"lr": 1e-3}}
    config.phases = ConfigDict({"answers": warm_up, "rollouts": rollouts})
    return config
