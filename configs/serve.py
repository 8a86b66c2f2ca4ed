"""Serve a reward model over HTTP: the routes of vLLM, OpenRLHF and LLaMA-Factory, and comparisons (docs/serving.md).

gramjax serve --config=serve --config.model.path=RUN_OR_HF_DIR --config.serve.port=8000

Every shape is compiled before the first request; one line says where it listens. SIGTERM ends it when all that was
asked is answered. How texts are rendered comes from the run that trained the model unless it is set here.
Hardware: whatever holds the weights; a small model runs on a CPU.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs

DATA = ("max_length", "judge_prompt", "judge_cue", "verdicts")
"""The settings of `config.data` that mean something where texts come by themselves."""


def get_config() -> ConfigDict:
    sections = ("model", "tokenizer", "data", "mesh", "reference", "serve", "sampling", "generation")
    config = configs.for_rows("serve", sections)
    config.data = ConfigDict({name: config.data[name] for name in DATA})
    config.sampling.n, config.sampling.max_tokens, config.sampling.temperature = 2, 1024, 0.75
    return config
