"""GRAM-R2 from nothing in a generated world of hidden permutations: prover, judge, two rounds of self-training.

gramjax run --config=gram_r2_toy --workdir=runs/gram_r2_toy

512 pairs with rationales train the prover and the first judge; two rounds of 2,000 unlabelled pairs follow. Pairs,
rationales and tokenizer come from the package (`recipe:permutation_world`). Every ablation is an override, for example
--config.recipe.rationale_source=none (labels only) or --config.recipe.proving.choice=first (no proof selection).
Hardware: 2 CPU cores, a few minutes. Expected: docs/gram_r2.md.
"""

from ml_collections import ConfigDict

from gramjax.core import config as configs
from gramjax.data.recipes import permutation_world as world


def get_config() -> ConfigDict:
    config = configs.for_recipe("gram_r2", evals=("rationale",))
    config.tokenizer.path = "recipe:permutation_world"
    config.data.valid = ("recipe:permutation_world:valid:400",)
    config.data.max_length = world.MAX_LENGTH
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 64, 256, 2
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 4, 4, 16
    arch.init_scale = 0.06
    arch.max_position_embeddings = 64
    config.optim.betas = (0.9, 0.98)
    config.optim.lr = 1e-3
    config.train.batch_size = 64
    config.train.remat, config.train.scan_layers = "none", False
    config.train.log_every = 100
    config.generation.slots = 128
    recipe = config.recipe
    recipe.rationales = ("recipe:permutation_world:train:512",)
    recipe.unlabelled = ("recipe:permutation_world:unlabelled:4000",)
    recipe.rounds = 2
    recipe.judging.instruction, recipe.proving.instruction = world.JUDGE_PROMPT, world.PROVER_PROMPT
    recipe.judging.sampling.max_tokens = recipe.proving.sampling.max_tokens = 32
    recipe.proving.sampling.n = 8
    config.evals.rationale.judging.sampling.max_tokens = 32
    config.evals.rationale.judging.sampling.n = 16
    config.phases = ConfigDict(
        {
            "prover": {"train": {"steps": 1500}},
            "judge": {"train": {"steps": 1500}},
            "final": {"train": {"steps": 100}, "optim": {"lr": 3e-4}},
        }
    )
    return config
