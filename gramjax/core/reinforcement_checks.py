"""Is a `GrpoSection` usable? Words, ranges that are not plain intervals, and settings that others would make idle."""

from gramjax.core import advantages, policy_losses, samples
from gramjax.core.checks import one_of
from gramjax.core.errors import UserError
from gramjax.core.reinforcement import GrpoSection


def check(section: GrpoSection, critic: bool = False) -> None:
    """Raise UserError for settings that do not go together; `critic`: the method has values of its own (ppo)."""
    one_of(
        section,
        "grpo",
        advantage=("gae",) if critic else tuple(name for name in advantages.ESTIMATORS if name != "gae"),
        aggregate=advantages.AGGREGATES,
        zero_variance=samples.ZERO_VARIANCE,
        mask_truncated=samples.TRUNCATED,
        samples=samples.WORDS,
        samples_by=samples.BY,
        filter_denominator=samples.DENOMINATORS,
        offline_shaping=policy_losses.SHAPINGS,
        offline_baseline=("mixed", "on_policy"),
        loss=policy_losses.LOSSES,
        aggregation=policy_losses.AGGREGATIONS,
        kl_estimator=policy_losses.ESTIMATORS,
        kl_in=("loss", "reward"),
        old_logprobs=("trainer", "sampler"),
        correction=policy_losses.CORRECTIONS,
    )
    samples.schedule(section)
    _check_advantages(section)
    _check_samples(section)
    _check_loss(section)
    _check_distance(section)


def _refuse(field: str, value: object, why: str) -> None:
    raise UserError(f"config.grpo.{field}={value!r}: {why}")


def _check_advantages(section: GrpoSection) -> None:
    name = advantages.estimator(section)
    compares = name in advantages.GROUP
    if name == "gae":
        for field, idle in (("offline_baseline", "mixed"), ("kl_before_normalisation", False)):
            if (value := getattr(section, field)) != idle:
                _refuse(field, value, "advantages from values have no statistics of groups")
    if compares and section.group_size < 2:
        _refuse("group_size", section.group_size, f"advantage={name} compares the answers of a group; give at least 2")
    if not compares and section.zero_variance != "keep":
        _refuse("zero_variance", section.zero_variance, f"advantage={name} looks at no groups")
    if section.std_floor and name not in ("grpo", "batch"):
        _refuse("std_floor", section.std_floor, f"advantage={name} divides by no deviation of rewards")
    if section.aggregate == "normalize_then_sum" and name != "grpo":
        _refuse("aggregate", section.aggregate, "it normalises by itself; leave config.grpo.advantage at auto or grpo")


def _check_samples(section: GrpoSection) -> None:
    filtered = section.samples != "all" or section.samples_schedule
    if section.filter_keep_prob and not filtered:
        _refuse("filter_keep_prob", section.filter_keep_prob, "there is no filter; set config.grpo.samples")
    if section.filter_denominator == "kept" and not filtered and section.mask_truncated == "none":
        _refuse("filter_denominator", "kept", "nothing is left out; set config.grpo.samples or mask_truncated")
    if not section.offline_fraction:
        for field in ("offline_clip", "offline_per_prompt"):
            if getattr(section, field):
                _refuse(
                    field, getattr(section, field), "config.grpo.offline_fraction is 0: there are no offline samples"
                )


def _check_loss(section: GrpoSection) -> None:
    for field in ("delta", "dual_clip"):
        value = getattr(section, field)
        if value and section.loss not in policy_losses.CLIPPED:
            _refuse(field, value, f"loss={section.loss} has no such bound")
    high = section.epsilon_high or section.epsilon
    if section.delta and section.delta <= 1 + high:
        _refuse("delta", section.delta, f"it must be above 1 + epsilon_high = {1 + high:g}")
    if section.dual_clip and section.dual_clip <= 1:
        _refuse("dual_clip", section.dual_clip, "it must be above 1")
    for field in ("sapo_temperatures", "vespo_positive", "vespo_negative"):
        if min(getattr(section, field)) <= 0:
            _refuse(field, getattr(section, field), "both must be above 0")
    led = ("entropy_target", "entropy_coef_delta", "entropy_coef_min", "entropy_coef_max")
    low, high = section.entropy_coef_min, section.entropy_coef_max
    if not section.use_adaptive_entropy:
        for field in led:
            if getattr(section, field) != getattr(GrpoSection, field):
                _refuse(field, getattr(section, field), "config.grpo.use_adaptive_entropy is False")
    elif not low <= section.entropy_coef <= high:
        _refuse("entropy_coef", section.entropy_coef, f"it begins outside of entropy_coef_min and _max ({low}, {high})")


def _check_distance(section: GrpoSection) -> None:
    if section.beta and section.kl_in == "loss" and section.kl_estimator == "k1" and not section.allow_k1_loss:
        _refuse("kl_estimator", "k1", "as a loss its gradient is 0 on average; use k2 or k3, or allow_k1_loss=True")
    if section.kl_in == "reward" and not section.beta:
        _refuse("kl_in", "reward", "config.grpo.beta is 0")
    if section.kl_before_normalisation and section.kl_in != "reward":
        _refuse("kl_before_normalisation", True, "it is for kl_in=reward")
    if section.correction != "none" and section.old_logprobs == "sampler":
        _refuse("correction", section.correction, "with old_logprobs=sampler the ratio holds the difference already")
    if section.correction == "token_mask" and section.correction_floor > section.correction_cap:
        _refuse("correction_floor", section.correction_floor, "it is above config.grpo.correction_cap")
