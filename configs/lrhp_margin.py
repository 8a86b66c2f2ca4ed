"""LRHP, margin prediction: two layers on the representations of an encoder learn the column `margin`.

gramjax train --config=lrhp_margin --workdir=runs/margins --config.model.path=runs/lrhp \\
    --config.data.train="('rated_pairs.jsonl',)"

A probe: the encoder is kept. Full fine-tuning: --config.train.trainable="('.*',)" --config.optim.lr=1e-5. Then
`annotate:predict_margins` with --config.annotator.method=head writes the column for other rows.
Hardware: whatever holds the weights.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("preference_margin")
    config.data.max_length = 2048
    config.data.overlong = "shorten_responses"
    config.optim.lr = 1e-3
    config.train.batch_size = 64
    config.train.epochs = 3.0
    config.train.trainable = (r"margin/.*",)
    return config
