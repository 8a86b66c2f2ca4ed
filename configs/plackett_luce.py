"""A scalar reward model learned from ranked lists of answers (Plackett-Luce); with two answers it is Bradley-Terry.

gramjax train --config=plackett_luce --workdir=runs/pl --config.model.path=MODEL_FOLDER \\
    --config.data.train="('lists.jsonl',)" --config.data.valid="('pairs.jsonl',)"

Rows: `prompt`, `responses` (two answers or more) and `ranking` (their indices, best first) or `scores` (equal: tied);
preference pairs are lists of two. Longer lists than config.objective.max_responses are thinned.
Hardware: 8 accelerators with 80 GB for an 8B model. Expected: the accuracy of `bradley_terry` trained on all pairs.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("plackett_luce", evals=("preference",))
    config.data.max_length = 2048
    config.optim.lr = 1e-5
    config.train.batch_size = 64
    config.train.eval_every = 500
    return config
