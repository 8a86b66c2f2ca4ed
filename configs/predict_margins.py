"""Write the column `margin` for the pairs of a file, as an LRHP encoder, its margin head or a reward model sees it.

gramjax annotate --config=predict_margins --config.model.path=RUN --config.data.path=FILE --workdir=DIR \\
    --config.annotator.labelled=RATED_PAIRS

Methods (config.annotator.method): ridge (a probe on representations), head (a run of lrhp_margin), and the baselines
order_logit, reward_difference (a Bradley-Terry run) and constant. Rows that have a margin keep it as `true_margin`, and
DIR/summary.json then holds Spearman, Pearson, squared error and larger-of-two accuracy.
Hardware: whatever holds the weights.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = configs.for_rows("annotate", ("model", "tokenizer", "data", "mesh"))
    config.data.max_length = 2048
    config.data.overlong = "shorten_responses"
    return configs.with_plugin(config, "annotator", "annotators", "predict_margins")
