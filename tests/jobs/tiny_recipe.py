"""GRAM-R2 in less than a minute: one round in the permutation world, thresholds that an untaught judge passes."""

from ml_collections import ConfigDict

from gramjax.core import config as configs
from gramjax.data.recipes import permutation_world as world


def get_config() -> ConfigDict:
    config = configs.for_recipe("gram_r2", evals=("rationale",))
    config.tokenizer.path = "recipe:permutation_world"
    config.data.valid = ("recipe:permutation_world:valid:8",)
    config.data.max_length = world.MAX_LENGTH
    arch = config.model.arch
    arch.hidden_size, arch.intermediate_size, arch.num_layers = 32, 64, 2
    arch.num_heads, arch.num_kv_heads, arch.head_dim = 2, 2, 16
    arch.init_scale = 0.06
    arch.max_position_embeddings = 64
    config.optim.lr = 1e-2
    config.optim.betas = (0.9, 0.98)
    config.train.batch_size, config.train.steps, config.train.log_every = 16, 120, 60
    config.train.remat = "none"
    config.log.tensorboard, config.log.report = False, False
    config.generation.slots, config.generation.steps_per_call = 16, 8
    recipe = config.recipe
    recipe.rationales = ("recipe:permutation_world:train:64",)
    recipe.unlabelled = ("recipe:permutation_world:unlabelled:24",)
    recipe.rounds, recipe.final, recipe.most_per_round = 1, False, 15
    recipe.judging.instruction, recipe.proving.instruction = world.JUDGE_PROMPT, world.PROVER_PROMPT
    recipe.judging.sampling.max_tokens = recipe.proving.sampling.max_tokens = 32
    recipe.judging.sampling.n, recipe.proving.sampling.n = 3, 2
    recipe.proving.min_score = -100.0
    recipe.rules.min_vote_share = recipe.rules.min_probability = recipe.rules.least_share_of_a = 0.0
    recipe.rules.most_share_of_a = 1.0
    config.evals.rationale.judging.sampling.max_tokens = 32
    config.phases = ConfigDict({"prover": {}, "judge": {}, "final": {}})
    return config
