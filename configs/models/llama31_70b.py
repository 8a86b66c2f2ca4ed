"""Llama-3.1-70B: its sizes, for every use of `core.presets`.

gramjax plan --config=models/llama31_70b --topology=v5p:4x4x8
gramjax train --config=models/llama31_70b --config.model.path=FOLDER --config.data.train="('rows.jsonl',)" --workdir=RUN

Uses: models/llama31_70b:full (the default), :selective, :lora, :bradley_terry, :score and :decode.
Hardware: see docs/scale.md.
"""

from ml_collections import ConfigDict

from gramjax.core.presets import preset
from gramjax.models import decoder, rotary

ARCH = decoder.Config(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64, num_kv_heads=8,
    head_dim=128, max_position_embeddings=131072, tie_word_embeddings=False, rope_theta=500000.0,
    rope_scaling=rotary.Scaling("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
)


def get_config(use: str = "full") -> ConfigDict:
    return preset(ARCH, use)
