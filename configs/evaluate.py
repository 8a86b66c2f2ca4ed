"""Judge the pairs of any preference file with a trained run or a Hugging Face folder.

gramjax evaluate --config=evaluate --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR

Writes DIR/eval/preference.json and one row per pair beside it. Both answer orders are judged; how rows are rendered
(judge prompt, cue, chat template, max_length) comes from the run that trained the model unless it is set here.
Several models judge together with --config.ensemble.members="('RUN2','RUN3')": each leaves its own results in
DIR/members, their mean (or a pessimistic combination) is DIR/eval.
A policy trained by DPO judges by its implicit reward: --config.evals.preference.method=implicit and
--config.reference.path=WHERE_IT_STARTED (without it the reward is the log-probability of the answer).
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "evaluate"
    for name in ("model", "tokenizer", "data", "mesh", "log", "reference"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    config.ensemble = configs.as_config(configs.EnsembleSection())
    config.evals = ConfigDict({"preference": configs.as_config(configs.plugins.load("evals", "preference").Config())})
    return config
