"""Answer one prompt, or every row of a file, with a trained run, a Hugging Face folder or a llama2.c file.

gramjax generate --config=generate --config.model.path=RUN_OR_HF_DIR --prompt="Once upon a time" --stream
gramjax generate --config=generate --config.model.path=RUN_OR_HF_DIR --input=FILE --output=FILE.jsonl

Rows have a prompt (text or messages); messages go through the chat template. The output has a line per row, in the order
of the input; the same command continues a file that was interrupted. --json prints one object per prompt.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = ConfigDict(configs.GENERAL)
    config.job = "generate"
    for name in ("model", "tokenizer", "data", "mesh", "sampling", "generation"):
        config[name] = configs.as_config(configs.SECTIONS[name]())
    config.model.arch = configs.as_config(configs.plugins.load("models", "decoder").Config())
    return config
