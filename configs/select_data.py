"""Choose rows of a file: sure votes (sure_votes), rationales that follow the rules (sound_rationales), and others.

gramjax select_data --config=select_data:sure_votes --config.data.path=FILE --workdir=DIR

Writes DIR/rows.jsonl and DIR/summary.json with a count and a first example for every reason.
Hardware: none to speak of.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config(selection: str = "sure_votes") -> ConfigDict:
    config = configs.for_rows("select_data", ("data",))
    return configs.with_plugin(config, "selection", "selection/rows", selection)
