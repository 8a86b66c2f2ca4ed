"""Settings of reinforcement learning: how rollouts are drawn, what they are worth, and the loss that learns from them.

The names are TRL's where TRL has one (`beta`, `epsilon`, `scale` of advantages, `mask_truncated`); docs/grpo.md has the
table of names of other libraries. `config.sampling` says how answers are drawn, `config.rewards` which rewards count.
"""

import dataclasses

ELSEWHERE = {"setting": "elsewhere"}
"""Metadata of a field that another section gives (see `core.config`)."""


@dataclasses.dataclass(frozen=True)
class GrpoSection:
    """Group-relative policy optimisation and its relatives."""

    # -- a step --
    prompts_per_step: int = 32
    """Prompts of one optimiser step; each has `group_size` answers."""
    group_size: int = 8
    """Answers drawn to each prompt (TRL num_generations)."""
    steps_per_rollout: int = 1
    """Optimiser steps whose prompts are answered by the same weights (TRL steps_per_generation)."""
    iterations: int = 1
    """Times that every answer is learned from (TRL num_iterations)."""
    lag: int = 0
    """1: the answers of the next rollout are drawn while this one is learned from, by weights that are one rollout old;
    0: always by the newest."""

    # -- advantages --
    advantage: str = "auto"
    """`grpo` (over the standard deviation of the group), `batch` (of the batch), `unscaled` (Dr. GRPO), `rloo`,
    `reinforce++`, `reinforce++_baseline`, `opo`, `remax`, `gpg`, `passk`; auto: `unscaled` for loss=dr_grpo, else
    `grpo`."""
    advantage_epsilon: float = 1e-6
    """Added to the standard deviation. A group whose rewards are all equal has advantages of exactly 0."""
    std_floor: float = 0.0
    """Smallest standard deviation divided by; 0: none."""
    aggregate: str = "sum_then_normalize"
    """`sum_then_normalize` the rewards of several functions, or `normalize_then_sum` (GDPO)."""
    zero_variance: str = "keep"
    """Groups with equal rewards: `keep`, `drop` from the batch (still in the denominators), `renormalise` (dropped from
    both), `resample` (draw other prompts until the batch is full: dynamic sampling)."""
    max_resamples: int = 8
    """Most further draws of one rollout with zero_variance=resample."""
    mask_truncated: str = "none"
    """Answers cut at the limit give no gradient: `none`, `all`, `wrong` ones that do not repeat themselves, or
    `wrong_repetitive` ones (what the code of the study did)."""

    # -- which samples (the study of positive and negative samples) --
    samples: str = "all"
    """Learn from `all`, `positive` or `negative` samples. Advantages are those of the whole group."""
    samples_by: str = "correctness"
    """What makes a sample positive: `correctness` or `advantage` (its sign)."""
    samples_schedule: tuple[str, ...] = ()
    """Changes of `samples` during training, each `STEP:WORD`, such as `0:negative`, `200:all`."""
    filter_denominator: str = "full"
    """Samples left out count in the denominators (`full`) or do not (`kept`)."""
    filter_keep_prob: float = 0.0
    """Probability that a sample of the other kind is kept."""

    # -- offline samples --
    offline_fraction: float = 0.0
    """Prompts answered correctly at most this often get offline solutions in place of wrong answers; 0: off."""
    offline_column: str = "solutions"
    """Column with the offline solutions of a prompt (a text or a list of texts)."""
    offline_per_prompt: int = 0
    """Most solutions put into one group; 0: as many as there are wrong answers."""
    offline_shaping: str = "p_div"
    """f of the policy's probability p of an offline token: `p_div` p/(p+gamma), `none` p, `pow` p^gamma, `sqrt`,
    `logp`."""
    offline_gamma: float = 0.1
    """Of `p_div` and `pow`."""
    offline_baseline: str = "mixed"
    """Group statistics over all samples (`mixed`) or over those of the policy (`on_policy`; where these are all equal,
    advantages are not divided by their deviation)."""
    offline_clip: bool = False
    """Clip the ratio of on-policy samples in runs with offline ones as in others; the study did not."""

    # -- loss --
    loss: str = "dapo"
    """`grpo`, `bnpo`, `dapo`, `dr_grpo` (one clipped loss, four denominators), `gspo`, `gspo_token`, `cispo`, `sapo`,
    `luspo`, `vespo`, `gmpo`, `reinforce`."""
    aggregation: str = "auto"
    """Denominator: `sequence` (mean over sequences of token means), `token` (global token mean), `batch_token` (token
    mean of each microbatch), `sequence_sum` (over sequences), `constant` (sequences times the longest completion
    allowed); auto: what belongs to the loss."""
    epsilon: float = 0.2
    """Largest fall of the ratio that counts."""
    epsilon_high: float = 0.0
    """Largest rise; 0: as `epsilon`."""
    delta: float = 0.0
    """Cap of the ratio before the minimum is taken (two-sided clipping); 0: none."""
    dual_clip: float = 0.0
    """For negative advantages the loss is at most this many times their size; 0: off."""
    ratio_cap: float = 5.0
    """Cap of the ratio in cispo."""
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    """For positive and for negative advantages."""
    vespo_positive: tuple[float, float] = (2.0, 3.0)
    """k and lambda of vespo for advantages of at least 0."""
    vespo_negative: tuple[float, float] = (3.0, 2.0)
    """k and lambda of vespo for negative advantages."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus, which is averaged like the loss (TRL's is always a token mean)."""
    use_adaptive_entropy: bool = False
    """Lead the weight from rollout to rollout, from `entropy_coef` on: it rises while samples have less entropy than
    `entropy_target`, falls otherwise, and counts only while they have at most that."""
    entropy_target: float = 0.2
    """Nats per token (the metric `sampling/entropy`); set it near what the start of a training shows."""
    entropy_coef_delta: float = 0.005
    """What the weight rises or falls by in a rollout."""
    entropy_coef_min: float = 0.0
    """Smallest weight."""
    entropy_coef_max: float = 1.0
    """Largest weight."""
    top_entropy_quantile: float = 1.0
    """Share of the tokens of a microbatch, those of highest entropy, that policy loss and entropy bonus use."""

    # -- distance to the reference --
    beta: float = 0.0
    """Weight of the KL divergence from the reference (`config.reference`); 0: no reference is loaded."""
    kl_estimator: str = "k3"
    """`k1`, `k2`, `k3`, `k3_is` (times the ratio) or `k3_k2grad` (value k3, gradient of k2)."""
    kl_in: str = "loss"
    """Where it counts: `loss` or `reward`."""
    kl_before_normalisation: bool = False
    """With kl_in=reward: subtract it before advantages are normalised, as the code of the study did, so that groups of
    equal rewards are no longer equal."""
    allow_k1_loss: bool = False
    """k1 as a loss has a gradient of 0 on average; True insists."""

    # -- sampler and trainer --
    old_logprobs: str = "trainer"
    """Log-probabilities that ratios start from: those of the `trainer`, or of the `sampler`."""
    correction: str = "none"
    """Weights for the difference between sampler and trainer: `none`, `token_truncate`, `token_mask`,
    `sequence_truncate` or `sequence_mask`."""
    correction_cap: float = 2.0
    """Largest weight."""
    correction_floor: float = 0.5
    """Smallest weight that `token_mask` keeps."""
    off_policy_mask_threshold: float = 0.0
    """Sequences of negative advantage are left out when the sampler found them more likely than the policy by more than
    this many nats per token; 0: off."""

    # -- what is shown --
    completions_every: int = 10
    """Steps between tables of completions (`samples/*.parquet`); 0: never."""
    completions_shown: int = 2
    """Completions printed with each table."""

    temperature: float = dataclasses.field(default=1.0, metadata=ELSEWHERE)
    """`config.sampling.temperature`: the policy that is optimised is the tempered one."""

    @property
    def entropy_bonus(self) -> bool:
        """Whether the loss has an entropy bonus, at least at times."""
        return self.entropy_coef != 0 or self.use_adaptive_entropy


@dataclasses.dataclass(frozen=True)
class RewardSection:
    """How the rewards of `config.rewards` and of the user's own functions become one number."""

    functions: tuple[str, ...] = ()
    """Reward functions of your own, each `FILE.py:NAME`, with TRL's signature."""
    function_weights: tuple[float, ...] = ()
    """Their weights; empty: 1 each."""
    correct: str = ""
    """The reward that says whether an answer is correct (the study's positive samples); empty: `verifiable` or
    `contains` where they count, else the first function of your own, else the first reward."""
    correct_at: float = 0.5
    """An answer is correct from this value of it on."""
    timeout: float = 60.0
    """Seconds that one call may take; after that its answers count as not judged."""
    max_failures: float = 0.2
    """When a reward fails in a larger share of its calls (of a rollout), the run ends with its first error."""
    threads: int = 4
    """Calls made at once."""
    processes: int = 2
    """Processes for rewards that check answers with symbolic mathematics."""
    relative_length: bool = False
    """Relative length reward: correct answers of mostly solved groups gain when shorter than the others."""
    relative_length_threshold: float = 0.75
    """Share of correct answers from which a group counts as solved."""
    relative_length_budget: float = 500.0
    """Tokens of difference that are worth a reward of 1."""
    relative_length_upper: float = 1.0
    """Largest gain."""
    relative_length_lower: float = -0.5
    """Largest loss, a negative number."""
    relative_length_min_spread: float = 0.0
    """Groups whose correct lengths differ by less (tokens) are left alone."""
