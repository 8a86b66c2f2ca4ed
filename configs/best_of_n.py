"""Best of n: rank the responses to each prompt by any reward model; proxy and oracle against log n - (n - 1) / n.

gramjax evaluate --config=best_of_n --config.model.path=RUN_OR_HF_DIR --config.data.path=responses.jsonl --workdir=DIR

Rows have `prompt` and `responses`, optionally a true score per response (`oracle` or `scores`) and a `reference`
response. Writes DIR/eval/best_of_n.json (the curve, what it cost) and, per list, its ranking, wins and choices.
--config.evals.best_of_n.selector=knockout or linear for long lists, --config.evals.best_of_n.top=0 for whole rankings.
Hardware: whatever holds the weights; a small model runs on a CPU. Columns and costs: docs/ranking.md.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "evaluate"
    for name in ("model", "tokenizer", "data", "mesh", "log"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    config.evals = ConfigDict({"best_of_n": configs.as_config(configs.plugins.load("evals", "best_of_n").Config())})
    return config
