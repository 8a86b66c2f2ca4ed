"""GRPO for a language model that speaks: stories whose first paragraph names a tree and ends in time.

gramjax train --config=grpo_stories --workdir=runs/stories \\
    --config.model.path=stories260K.bin --config.tokenizer.path=tok512.bin

A model of children's stories continues a beginning; a paragraph (it ends with a line break) that contains the word
within 60 tokens has reward 1, less the share of word triples that it repeats. A small beta holds it to its start.
--config.rewards.contains.words="('bird',)" asks for another word. Which samples count, the loss and everything else are
overrides as in grpo_modadd.
Hardware: 2 CPU cores and the 260-thousand-parameter model of llama2.c, a few minutes. Expected: docs/results.md.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = configs.defaults("grpo", rewards=("contains", "repetition"))
    config.data.train = ("recipe:story_beginnings:train",)
    config.data.max_length = 48
    config.data.packing = True
    config.optim.lr = 3e-4
    config.optim.schedule = "constant"
    config.train.remat, config.train.scan_layers = "none", False
    config.train.steps = 24
    config.train.log_every = 1
    config.rewards.contains.words = ("tree",)
    config.rewards.contains.max_tokens = 60
    config.grpo.prompts_per_step = 16
    config.grpo.group_size = 16
    config.grpo.beta = 0.05
    config.grpo.completions_every = 4
    config.sampling.max_tokens = 64
    config.sampling.stop = ("\n",)
    config.generation.slots = 128
    config.generation.steps_per_call = 16
    config.generation.prefill_rows = 8
    return config
