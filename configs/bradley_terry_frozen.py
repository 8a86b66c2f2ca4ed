"""A Bradley-Terry reward model whose backbone stays as it is: only the scalar head is trained (a linear probe).

gramjax train --config=bradley_terry_frozen --workdir=runs/bt_frozen --config.model.path=MODEL_FOLDER \\
    --config.data.train="('pairs.jsonl',)" --config.data.valid="('held_out.jsonl',)"

Frozen weights have no gradient, no optimiser state and no backward pass, so a step costs a third of `bradley_terry`.
Hardware: one accelerator with 80 GB for an 8B model. Expected: below `bradley_terry` on the same pairs.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("bradley_terry", evals=("preference",))
    config.data.max_length = 2048
    config.optim.lr = 1e-3
    config.train.trainable = (r"score(_hidden/.*)?",)
    config.train.batch_size = 128
    config.train.eval_every = 500
    return config
