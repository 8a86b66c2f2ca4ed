"""Judge the pairs of any preference file by the order logit of an LRHP encoder, in both orders.

gramjax evaluate --config=evaluate_order --config.model.path=RUN --config.data.path=FILE --workdir=DIR

Writes DIR/eval/preference_order.json (accuracy, corr(u(s), -u(s_T)), calibration) and one row per pair beside it.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "evaluate"
    for name in ("model", "tokenizer", "data", "mesh", "log"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    eval_config = configs.plugins.load("evals", "preference_order").Config()
    config.evals = ConfigDict({"preference_order": configs.as_config(eval_config)})
    return config
