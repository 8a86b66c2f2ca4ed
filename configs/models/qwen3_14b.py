"""Qwen3-14B: its sizes, for every use of `core.presets`.

gramjax plan --config=models/qwen3_14b --topology=v5e:4x4
gramjax train --config=models/qwen3_14b --config.model.path=FOLDER --config.data.train="('rows.jsonl',)" --workdir=RUN

Uses: models/qwen3_14b:full (the default), :selective, :lora, :bradley_terry, :score and :decode.
Hardware: see docs/scale.md.
"""

from ml_collections import ConfigDict

from gramjax.core.presets import preset
from gramjax.models import decoder

ARCH = decoder.Config(
    family="qwen3", vocab_size=151936, hidden_size=5120, intermediate_size=17408, num_layers=40, num_heads=40,
    num_kv_heads=8, head_dim=128, max_position_embeddings=40960, tie_word_embeddings=False, rope_theta=1000000.0,
    norm_eps=1e-6, qk_norm=True,
)


def get_config(use: str = "full") -> ConfigDict:
    return preset(ARCH, use)
