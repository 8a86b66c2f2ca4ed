"""GRAM, stage 1 and 2, on your own preference data, from a Hugging Face model (arXiv 2506.14175).

gramjax train --config=gram --workdir=runs/gram --config.model.path=MODEL_FOLDER \\
    --config.data.train="('pairs.jsonl',)" --config.data.valid="('held_out.jsonl',)"

Settings of the released Qwen3 models: stage 1 lr 1e-5, 1 epoch, 256 pairs a step; stage 2 lr 2e-5, 2 epochs, 128
pairs a step, label smoothing 0.1 in the uniform convention (eps 0.05). Stage 1 takes unlabelled pairs, or labelled
ones without looking at their labels; give it a set of its own with
--config.phases.stage1.data.train="('unlabelled.jsonl',)".
Hardware: 8 accelerators with 80 GB for an 8B model; `--dry_run` shows sizes. Published for 8B: RewardBench 85.1.
"""

from ml_collections import ConfigDict

from gramjax.core.config import defaults


def get_config() -> ConfigDict:
    config = defaults("generative_preference", evals=("preference",))
    config.data.max_length = 2048
    config.optim.warmup_ratio = 0.1
    config.phases = ConfigDict(
        {
            "stage1": {
                "objective": {"stage": "pretrain"},
                "optim": {"lr": 1e-5},
                "train": {"batch_size": 256, "epochs": 1.0, "evaluate": False, "save_every": 500},
                "data": {"train": ()},
            },
            "stage2": {
                "objective": {"stage": "finetune", "label_smoothing": 0.05},
                "optim": {"lr": 2e-5},
                "train": {"batch_size": 128, "epochs": 2.0, "eval_every": 500, "save_every": 500},
            },
        }
    )
    return config
