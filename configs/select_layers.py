"""Which layers treat languages differently (SLAM), or which could share their attention (LiSA).

gramjax select_layers --config=select_layers --config.model.path=MODEL_FOLDER --config.data.path=FOLDER \\
    --workdir=runs/layers

FOLDER has a file per language with the same questions (`en.jsonl.gz`, `de.jsonl.gz`, ...: MGSM, MSVAMP, NTREX). Writes
layers.json, scores.csv and plots/. --config.selection=attention_similarity chooses layers for LiSA.
Hardware: whatever holds the weights. Expected: the lowest layers stand out; where they do not, a warning says so.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config(selection: str = "activation") -> ConfigDict:
    config = configs.for_rows("select_layers", ("model", "tokenizer", "data", "probe", "mesh"))
    return configs.with_plugin(config, "selection", "selection/layers", selection)
