"""QAlign, the two-stage baseline of SLAM: translate questions into English, then learn English answers; all trains.

gramjax train --config=qalign --workdir=runs/qalign --config.model.path=MODEL \\
    --config.phases.stage1.data.train="('pairs.jsonl',)" --config.phases.stage2.data.train="('english.jsonl',)"

pairs.jsonl comes from `gramjax data pairs FOLDER pairs.jsonl`; english.jsonl has questions with worked answers, such
as GSM8K's training file or MetaMathQA. The settings are those of the released scripts (NJUNLP/QAlign).
Hardware: 8 accelerators with 80 GB for an 8B model. Published for 7B: MGSM 49.6, MSVAMP 57.2 (means of ten languages).
"""

from ml_collections import ConfigDict

from gramjax.core.presets import translations


def get_config() -> ConfigDict:
    config = translations()
    config.data.max_length = 512
    config.optim.warmup_ratio = 0.03
    config.train.batch_size = 128
    config.train.epochs = 3.0
    config.seed = 1234
    config.phases = ConfigDict(
        {
            "stage1": {"data": {"train": ()}, "train": {"evaluate": False}},
            "stage2": {"data": {"train": ()}},
        }
    )
    return config
