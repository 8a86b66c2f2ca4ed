"""Supervised fine-tuning (or language modelling) with sequences packed to full length.

gramjax train --config=sft --workdir=runs/sft --config.model.path=MODEL_FOLDER \\
    --config.data.train="('rows.jsonl',)" --config.data.valid="('held_out.jsonl',)"

Rows: `messages`, `prompt` and `completion`, or `text`; the assistant's turns, the completion or the text are scored.
Hardware: 8 accelerators with 80 GB for an 8B model. Expected: a perplexity on held-out rows that falls.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("cross_entropy", evals=("perplexity",))
    config.data.max_length = 2048
    config.data.packing = True
    config.optim.lr = 1e-5
    config.train.batch_size = 64
    return config
