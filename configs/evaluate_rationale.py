"""Judge the pairs of any preference file by drawn rationales: voting@k of a model trained to write them (GRAM-R2).

gramjax evaluate --config=evaluate_rationale --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR \\
    --config.evals.rationale.judging.sampling.n=5

Writes DIR/eval/rationale.json (accuracy of the majority, agreement of the draws, accuracy with 1 to n votes) and every
pair with all its rationales beside it. Files of RM-Bench and JudgeBench are recognised and also counted by their rules.
The instruction comes from the run that trained the model; --config.evals.rationale.judging.instruction for another one.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "evaluate"
    for name in ("model", "tokenizer", "data", "mesh", "log"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    config.evals = ConfigDict({"rationale": configs.as_config(configs.plugins.load("evals", "rationale").Config())})
    return config
