"""Full tuning of a Bradley-Terry reward model on Llama-3.1-8B, one sequence of 2,048 tokens per chip.

gramjax plan --config=reward_llama31_8b --topology=v5e:4x4
gramjax train --config=reward_llama31_8b --config.model.path=LLAMA_FOLDER --config.data.train="('pairs.jsonl',)" \\
    --workdir=runs/reward_8b

Float32 master weights and Adam moments, bfloat16 compute. A step sees 64 pairs, 8 at a time: both answers of a pair lie
on two chips that share each layer (tensor 2), so that 16 chips hold 16 sequences. Other numbers of chips: a multiple of
2, and --config.train.grad_accum so that 64 pairs divide. Hardware: a v5e 4x4 slice (docs/scale.md).
"""

from ml_collections import ConfigDict

from gramjax.core.flags import load


def get_config() -> ConfigDict:
    config = load("models/llama31_8b:bradley_terry")
    config.data.max_length = 2048
    config.optim.lr = 1e-5
    config.mesh.tensor = 2
    config.train.batch_size = 64
    config.train.grad_accum = 8
    return config
