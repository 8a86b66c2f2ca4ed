"""A generative judge without stage 1, on labelled pairs alone: the baseline beside GRAM (arXiv 2506.14175).

gramjax train --config=generative --workdir=runs/generative --config.model.path=MODEL_FOLDER \\
    --config.data.train="('pairs.jsonl',)" --config.data.valid="('held_out.jsonl',)"

Variants: --config.objective.label_smoothing=0.05, --config.objective.dpo_beta=0.1 (DPO between right and wrong verdict,
against the model it starts from), --config.lora.rank=16, and the upper layers only:
--config.train.trainable="(r'layers/0(2[89]|3.)/.*',)".
Hardware: 8 accelerators with 80 GB for an 8B model. Published for 8B: RewardBench 80.0.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("generative_preference", evals=("preference",))
    config.objective.label_smoothing = 0.0
    config.data.max_length = 2048
    config.optim.lr = 2e-5
    config.train.epochs = 2.0
    config.train.batch_size = 128
    config.train.eval_every = 500
    return config
