"""RewardBench 2 with its subset Ties, by a reward model of any kind.

gramjax evaluate --config=rewardbench2 --config.model.path=RUN_OR_HF_DIR --config.data.path=FILE --workdir=DIR

FILE is the benchmark's test split as .jsonl or parquet (`chosen` and `rejected` are lists). Writes
DIR/eval/rewardbench2.json, the scores of every answer beside it, and the leaderboard's two files below
DIR/eval/exports/rewardbench2. A judge of pairs compares all answers of a list with each other (docs/evaluation.md).
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "evaluate"
    for name in ("model", "tokenizer", "data", "mesh", "log"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    method = configs.plugins.load("evals", "rewardbench2")
    config.evals = ConfigDict({"rewardbench2": configs.as_config(method.Config())})
    return config
