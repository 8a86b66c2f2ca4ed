"""SLAM: translation pairs tune the MLPs of the few layers that treat languages differently (arXiv 2501.03681).

gramjax data pairs FOLDER pairs.jsonl                # FOLDER: the same questions in en.jsonl, de.jsonl, ...
gramjax select_layers --config=select_layers --config.model.path=MODEL --config.data.path=FOLDER --workdir=runs/layers
gramjax train --config=slam --config.model.path=MODEL --config.select.path=runs/layers/layers.json \\
    --config.data.train="('pairs.jsonl',)" --workdir=runs/slam

Up and down projections of the chosen layers train, 6.5 to 8 % of a 7B or 13B model; the settings are those of the
released scripts. To compare: --config=slam:full, :lora, :random, :upper (as many other layers), :attention, and qalign.
Hardware: 8 accelerators with 80 GB for a 13B model. Expected, from MetaMath: more than 49.6 on MGSM and 57.2 on MSVAMP
with 7B (QAlign's averages of ten languages).
"""

from ml_collections import ConfigDict

from gramjax.core.errors import UserError
from gramjax.core.presets import translations


def get_config(kind: str = "slam") -> ConfigDict:
    config = translations()
    config.data.max_length = 1024
    config.optim.warmup_ratio = 0.0
    config.train.batch_size = 512
    config.train.epochs = 4.0
    config.train.save_every = 25
    config.select.rule = "measured"
    if kind in ("random", "upper"):
        config.select.rule = kind
    elif kind == "attention":
        config.select.targets = ("attn",)
    elif kind in ("full", "lora"):
        config.select.rule = ""
        config.lora.rank = 16 if kind == "lora" else 0
    elif kind != "slam":
        raise UserError(f"no slam:{kind}; slam, slam:full, slam:lora, slam:random, slam:upper or slam:attention")
    return config
