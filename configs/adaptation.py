"""Task adaptation: accuracy on a new task by number of labels, from several starts, three seeds, nested subsets.

gramjax run --config=adaptation --workdir=runs/adaptation --config.recipe.rows=task.jsonl \\
    --config.data.valid="('held_out.jsonl',)" \\
    --config.recipe.starts="('base:MODEL_FOLDER','judge:runs/judge','gram:runs/gram')"

`judge` is a generative reward model without stage 1, `gram` one with it (--config=gram). Writes rounds.json, a report
with the curve, and every subset and tuning below steps/. --config=adaptation:bradley_terry tunes scalar models: then
leave budget 0 out, or start from models that have a score.
Hardware: as for --config=gram. Expected on a small model: docs/results.md.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config(objective: str = "generative_preference") -> ConfigDict:
    config = configs.for_recipe("adaptation_curve", evals=("preference",))
    configs.with_plugin(config, "objective", "objectives", objective)
    config.data.max_length = 2048
    config.optim.lr = 2e-5
    config.train.batch_size = 64
    config.train.epochs = 2.0
    return config
