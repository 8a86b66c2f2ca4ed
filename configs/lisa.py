"""LiSA: the new parts of layers that share attention are trained, everything else stays (arXiv 2408.01890).

gramjax select_layers --config=select_layers:attention_similarity --config.model.path=MODEL --config.data.path=TEXT \\
    --workdir=runs/layers
gramjax convert MODEL runs/shared --to=lisa --layers=runs/layers/layers.json --calibration=TEXT
gramjax train --config=lisa --config.model.path=runs/shared --config.reference.path=MODEL \\
    --config.data.train="('text.jsonl',)" --workdir=runs/lisa

Language modelling plus the divergence from the original's next tokens; lisa:lm is the first alone (without
reference.path), lisa:layerwise a cheap start that fits the scores layer by layer, whose run folder the next training
takes as model.path. Hardware: 8 accelerators with 80 GB for an 8B model (scores of all sharing layers are alive in
training). Expected: perplexity near the original's for half of the layers; 0.5 to 1.6 % of the parameters train.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults
from gramjax.core.errors import UserError
from gramjax.models import lisa


def get_config(kind: str = "kl") -> ConfigDict:
    config = defaults("distillation", evals=("perplexity",))
    config.data.max_length = 2048
    config.data.packing = True
    config.optim.lr = 1e-3
    config.optim.lr_factors = (r"layers/\d+/attn/[qk]_low:0.5",)
    config.optim.warmup_ratio = 0.02
    config.optim.end_lr_ratio = 0.1
    config.train.trainable = (lisa.NEW,)
    config.train.batch_size = 32
    config.train.steps = 2000
    if kind == "kl":
        config.objective.kl_logits = 1.0
    elif kind == "layerwise":
        config.objective.lm = 0.0
        config.objective.js_attn, config.objective.mse_score = 1.0, 0.01
        config.objective.layerwise = True
        config.train.steps = 500
    elif kind != "lm":
        raise UserError(f"no lisa:{kind}; lisa:kl, lisa:lm or lisa:layerwise")
    return config
