"""Answer one prompt, or every row of a file, with a trained run, a Hugging Face folder or a llama2.c file.

gramjax generate --config=generate --config.model.path=RUN_OR_HF_DIR --prompt="Once upon a time" --stream
gramjax generate --config=generate --config.model.path=RUN_OR_HF_DIR --input=FILE --output=FILE.jsonl

Rows have a prompt (text or messages); messages go through the chat template. The output has a line per row, in the
order of the input; the same command continues a file that was interrupted. --json prints one object per prompt.
--config.sampling.num_beams=4 --config.sampling.temperature=0 searches with beams instead of drawing.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs

DATA = ("rename", "limit", "pairs_per_record", "max_length", "overlong", "on_bad_row")
"""The settings of `config.data` that mean something where rows are prompts."""


def get_config() -> ConfigDict:
    config = configs.for_rows("generate", ("model", "tokenizer", "data", "mesh", "sampling", "generation"))
    config.data = ConfigDict({name: config.data[name] for name in DATA})
    return config
