"""DPO: a language model trained on preference pairs against a frozen copy of itself (arXiv 2305.18290).

gramjax train --config=dpo --workdir=runs/dpo --config.model.path=MODEL_FOLDER \\
    --config.data.train="('pairs.jsonl',)" --config.data.valid="('held_out.jsonl',)"

The reference is what the training starts from, or --config.reference.path=OTHER_FOLDER. Variants:
--config.objective.loss=ipo or hinge, --config.objective.label_smoothing=0.1, and margins from a column `margin` with
--config.objective.margin_weight=0.5. The eval judges held-out pairs by the implicit reward.
Hardware: 8 accelerators with 80 GB for an 8B model (16 GB more than `sft` for the reference, shared among them).
Expected: a loss of log 2 = 0.693 at the first step, `rewards/accuracies` that rise from there.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("dpo", evals=("preference",))
    config.evals.preference.method = "implicit"
    config.data.max_length = 2048
    config.optim.lr = 1e-6
    config.train.batch_size = 64
    return config
