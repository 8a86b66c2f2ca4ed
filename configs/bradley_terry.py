"""A Bradley-Terry reward model: a scalar head on a pretrained decoder, trained on preference pairs.

gramjax train --config=bradley_terry --workdir=runs/bt --config.model.path=MODEL_FOLDER \\
    --config.data.train="('pairs.jsonl',)" --config.data.valid="('held_out.jsonl',)"

Variants: --config.objective.label_smoothing=0.1, --config.objective.use_margin (a column `margin`),
--config.objective.center_rewards_coefficient=0.01, and a frozen backbone with --config.train.trainable="('score',)".
Hardware: 8 accelerators with 80 GB for an 8B model. Published for 8B on Unified-Feedback: RewardBench 74.1.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("bradley_terry", evals=("preference",))
    config.data.max_length = 2048
    config.optim.lr = 1e-5
    config.train.batch_size = 128
    config.train.eval_every = 500
    return config
