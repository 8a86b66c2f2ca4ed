"""Keep the pairs of a pool that express the preference of a small target set (LRHP, preference data selection).

gramjax select_data --config=select_preferences --config.data.path=POOL/rows.jsonl --workdir=DIR \\
    --config.selection.vectors=POOL --config.selection.target_vectors=TARGET --config.selection.most=1000

Both folders come from embed_preferences. Modes: budget, adaptive, diverse. Baselines: other vectors, or
--config=select_data:random_rows, :margin_filter and :prompt_tfidf.
Hardware: none to speak of.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = configs.for_rows("select_data", ("data",))
    return configs.with_plugin(config, "selection", "selection/rows", "preference_similarity")
