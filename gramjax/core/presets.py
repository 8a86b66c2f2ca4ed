"""What several files of `configs` begin with: a named architecture (`configs/models`), and tuning on translations."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from gramjax.core import config as configs
from gramjax.core.errors import UserError

USES = ("full", "selective", "lora", "bradley_terry", "score", "decode")
SHARE = 0.15
"""Of the layers that `selective` trains."""


def preset(arch: Any, use: str = "full") -> ConfigDict:
    """The config of a use of an architecture (a record of `models/decoder.py`), on random weights unless
    `config.model.path` names some.

    `full` tunes everything on next tokens, `selective` the lowest layers (15 %) and `lora` adapters of rank 16;
    `bradley_terry` trains a reward model, `score` reads one, `decode` answers. Rows have 2,048 tokens.
    """
    if use not in USES:
        raise UserError(f"a model preset is used for {', '.join(USES)}, not {use!r}")
    if use == "score":
        config = configs.for_rows("score", ("model", "tokenizer", "data", "mesh", "reference", "score"))
        arch = dataclasses.replace(arch, heads=("score",))
    elif use == "decode":
        config = configs.for_rows("generate", ("model", "tokenizer", "data", "mesh", "sampling", "generation"))
        config.generation.max_length = 2048
    else:
        config = configs.defaults("bradley_terry" if use == "bradley_terry" else "cross_entropy")
    config.model.arch = configs.as_config(arch)
    config.data.max_length = 2048
    if use == "selective":
        config.select.layers = tuple(range(max(round(SHARE * arch.num_layers), 1)))
        config.select.targets = ("attn", "mlp")
    if use == "lora":
        config.lora.rank = 16
    return config


def translations() -> ConfigDict:
    """What SLAM and its two-stage baseline QAlign have in common: next tokens of the answers to orders to translate,
    in the frame that they evaluate in, and the optimiser of the released scripts."""
    config = configs.defaults("cross_entropy", evals=("perplexity",))
    config.tokenizer.chat_template = "alpaca"
    config.optim.lr = 2e-5
    config.optim.betas = (0.9, 0.999)
    return config
