"""Llama-3.1-8B: its sizes, for every use of `core.presets`.

gramjax plan --config=models/llama31_8b --topology=v5e:4x4
gramjax train --config=models/llama31_8b --config.model.path=FOLDER --config.data.train="('rows.jsonl',)" --workdir=RUN

Uses: models/llama31_8b:full (the default), :selective, :lora, :bradley_terry, :score and :decode.
Hardware: see docs/scale.md.
"""

from ml_collections import ConfigDict

from gramjax.core.presets import preset
from gramjax.models import decoder, rotary

ARCH = decoder.Config(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_layers=32, num_heads=32, num_kv_heads=8,
    head_dim=128, max_position_embeddings=131072, tie_word_embeddings=False, rope_theta=500000.0,
    rope_scaling=rotary.Scaling("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0),
)


def get_config(use: str = "full") -> ConfigDict:
    return preset(ARCH, use)
