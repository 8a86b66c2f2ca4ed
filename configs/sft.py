"""Supervised fine-tuning (or language modelling) with sequences packed to full length.

gramjax train --config=sft --workdir=runs/sft --config.model.path=MODEL_FOLDER --config.data.train="('rows.jsonl',)"

Rows: `messages`, `prompt` and `completion`, or `text`; the assistant's turns, the completion or the text are scored.
Hardware: 8 accelerators with 80 GB for an 8B model. Expected: a loss that falls; judge it on held-out rows.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("cross_entropy")
    config.data.max_length = 2048
    config.data.packing = True
    config.optim.lr = 1e-5
    config.train.batch_size = 64
    config.train.save_every = 500
    return config
