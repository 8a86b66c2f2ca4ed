"""GRM: a Bradley-Terry reward model whose hidden states must still write the answers (Yang et al. 2024).

gramjax train --config=grm --workdir=runs/grm --config.model.path=MODEL_FOLDER \\
    --config.data.train="('pairs.jsonl',)" --config.data.valid="('held_out.jsonl',)"

Variants: --config.objective.regularization=dpo (against the model it starts from), dpo_noref, nll. The vocabulary head
is frozen; the reward head is linear.
Hardware: 8 accelerators with 80 GB for an 8B model. Expected: the in-distribution accuracy of `bradley_terry`, and a
higher one out of distribution.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("grm", evals=("preference",))
    config.data.max_length = 2048
    config.optim.lr = 1e-5
    config.train.trainable = (r"(?!lm_head).*",)
    config.train.batch_size = 128
    config.train.eval_every = 500
    return config
