"""GRAM-R2 with a language model: prover from human rationales, judge, three rounds of self-training, final tuning.

gramjax run --config=gram_r2 --workdir=runs/gram_r2 --config.model.path=MODEL_FOLDER \
    --config.recipe.rationales="('helpsteer3.jsonl',)" --config.recipe.labelled="('pairs.jsonl',)" \
    --config.recipe.unlabelled="('round1.jsonl','round2.jsonl','round3.jsonl')" \
    --config.data.valid="('held_out.jsonl',)"

HelpSteer3's preference files are read as they are. A larger prover: --config.phases.prover.model.path=LARGER_FOLDER.
Ablations: --config.recipe.rounds=0 (no self-training), --config.recipe.rationale_source=none (labels only) or self,
--config.recipe.proving.choice=first (no proof selection), --config.recipe.final=False, and without denoising
--config.recipe.judging.sampling.n=1 --config.recipe.rules.min_vote_share=0 --config.recipe.rules.min_probability=0.
Thresholds, k, n and temperatures are not published; these are this package's defaults.
Hardware: 8B parameters and their optimiser state over a slice or host with 150 GB of memory. Expected: docs/gram_r2.md.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs


def get_config() -> ConfigDict:
    config = configs.for_recipe("gram_r2", evals=("rationale",))
    config.data.max_length = 4096
    config.optim.lr = 1e-5
    config.train.batch_size = 128
    config.train.grad_accum = 8
    config.train.save_every = 200
    config.generation.slots = 64
    config.phases = ConfigDict(
        {
            "prover": {"train": {"epochs": 2.0, "evaluate": False}},
            "judge": {"train": {"epochs": 1.0}},
            "final": {"train": {"epochs": 2.0}},
        }
    )
    return config
