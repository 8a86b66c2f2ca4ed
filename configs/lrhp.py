"""LRHP: an encoder that maps a preference pair to a vector, read at one learned token (arXiv 2410.04503).

gramjax train --config=lrhp --workdir=runs/lrhp --config.model.path=MODEL_FOLDER \\
    --config.data.train="('pairs.jsonl',)" --config.data.valid="('held_out.jsonl',)"

MODEL_FOLDER may be a Hugging Face folder or a run (stage 1 of `gram`: the generative warm start). Every pair is seen in
both orders; one or two epochs, as a long training lets the vectors collapse onto one direction. Then:
embed_preferences, select_preferences, lrhp_margin (docs/lrhp.md).
Hardware: as for a reward model of that size. Expected: order accuracy of a Bradley-Terry model on the same pairs.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("preference_representation", evals=("preference_order",))
    config.data.max_length = 2048
    config.data.overlong = "shorten_responses"
    config.optim.lr = 1e-5
    config.train.batch_size = 64
    return config
