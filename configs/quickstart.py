"""A small generative judge from scratch, in both stages of GRAM, on preference pairs that the package generates.

gramjax train --config=quickstart --workdir=runs/quickstart

Stage 1 learns to write both answers of unlabelled pairs, stage 2 the verdict. The pairs are translations into an
invented language, one right and one wrong; the longest answer and the first answer are right half of the time.
Hardware: 2 CPU cores, about two minutes. Expected: held-out accuracy above 0.95, swap consistency above 0.95.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults
from gramjax.data.recipes import word_translation


def get_config() -> ConfigDict:
    config = defaults("generative_preference", evals=("preference",))
    config.tokenizer.path = "recipe:word_translation"
    config.data.valid = ("recipe:word_translation:valid",)
    config.data.max_length = word_translation.MAX_LENGTH
    config.data.judge_prompt = word_translation.JUDGE_PROMPT
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 128, 256, 3
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 8, 8, 16
    arch.init_scale = 0.06  # 0.02 suits widths of thousands: a narrow model learns slowly from it
    config.optim.betas = (0.9, 0.98)
    config.train.batch_size = 64
    config.train.remat = "none"
    config.phases = ConfigDict(
        {
            "stage1": {
                "objective": {"stage": "pretrain"},
                "data": {"train": ("recipe:word_translation:unlabelled",)},
                "train": {"steps": 150, "evaluate": False},
                "optim": {"lr": 2e-3},
            },
            "stage2": {
                "objective": {"stage": "finetune"},
                "data": {"train": ("recipe:word_translation:train",)},
                "train": {"steps": 350, "eval_every": 100},
                "optim": {"lr": 1e-3},
            },
        }
    )
    return config
