"""A vector for each pair of a file: representations of an LRHP encoder, hidden-state differences, or prompts.

gramjax annotate --config=embed_preferences --config.model.path=RUN --config.data.path=FILE --workdir=DIR

Writes DIR/rows.jsonl with `order_margin`, DIR/vectors.safetensors (float32 [rows, width]) with DIR/vectors.ids.json, a
map of them in DIR/plots/map.png, and effective rank and probe accuracy in DIR/summary.json. Baselines:
--config.annotator.kind=hidden_difference (any model), =prompt, or --config.annotator.untrained=True.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = configs.for_rows("annotate", ("model", "tokenizer", "data", "mesh"))
    config.data.max_length = 2048
    config.data.overlong = "shorten_responses"
    return configs.with_plugin(config, "annotator", "annotators", "embed_preferences")
