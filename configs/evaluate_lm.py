"""Perplexity and next-token accuracy of a language model on rows of text (or on the completions of prompts).

gramjax evaluate --config=evaluate_lm --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR

Writes DIR/eval/perplexity.json and a line per row beside it; `gramjax report DIR OTHER` compares two runs.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "evaluate"
    for name in ("model", "tokenizer", "data", "mesh", "log"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    config.data.max_length = 2048
    config.evals = ConfigDict({"perplexity": configs.as_config(configs.plugins.load("evals", "perplexity").Config())})
    return config
