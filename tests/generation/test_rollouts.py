"""Rollouts as a batch source: what is drawn, what a step learns from, and where a killed run goes on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from reference_sampler import SETTINGS, tiny

from gramjax.core.config import DataSection, SamplingSection
from gramjax.core.errors import Preempted, UserError
from gramjax.core.reinforcement import GrpoSection, RewardSection
from gramjax.data import tokenizer
from gramjax.data.text import Renderer
from gramjax.generation.entropy import Leader
from gramjax.generation.experience import Sample
from gramjax.generation.rollouts import Plan, Prompts, Rollouts
from gramjax.generation.valuation import Valuer
from gramjax.objectives import grpo as objective

END, LIKED = 5, (6, 7, 8, 9)
PROMPTS = [[1 + i, 2, 3 + i % 5][: 1 + i % 3] for i in range(12)]
GRPO = GrpoSection(prompts_per_step=4, group_size=4)


class Liking:
    """Rewards that like some tokens; a stand-in for the runner, which has tests of its own."""

    names, weights, greedy = ("liking",), (1.0,), False

    def __init__(self, liked=LIKED):
        self.liked, self.calls = liked, 0

    def submit(self, row, completions, completion_ids, step, greedy=None):
        self.calls += 1
        return [[float(bool(set(self.liked) & set(ids)))] for ids in completion_ids]

    def result(self, future, poll):
        poll()
        return np.array(future)

    def extra(self, future):
        return [{} for _ in future]

    def check(self):
        pass

    def metrics(self):
        return {}


def source(grpo=GRPO, liked=LIKED, reward=RewardSection(), steps=8, packing=True, solutions=(), rewards=None, seed=0):
    network, _, _ = tiny()
    texts = [["text"] * len(found) for found in solutions]
    prompts = Prompts([{"id": str(i), "prompt": "p"} for i in range(len(PROMPTS))], PROMPTS, solutions, texts)
    rewards = rewards or Liking(liked)
    sampling = SamplingSection(max_tokens=6)
    grpo = dataclasses.replace(grpo, temperature=sampling.temperature)
    plan = Plan(grpo, sampling, SETTINGS, seed, steps, 2, packing)
    renderer = Renderer(tokenizer.load("bytes"), DataSection())
    value = Valuer(grpo, reward, rewards.names, rewards.weights)
    return Rollouts(plan, prompts, network, renderer, (END,), rewards, value, lambda batch: batch)


def kept(made):
    """Let a source remember its samples."""
    seen = []
    made.record = lambda step, samples, metrics: seen.append((step, samples, metrics))
    return seen


def params():
    return tiny()[1]


def same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_rollout_has_whole_groups_of_versions_and_log_probabilities_of_the_policy():
    made = source(dataclasses.replace(GRPO, correction="token_truncate"))
    seen = kept(made)
    made.next(params())
    made.next(params())
    assert [step for step, _, _ in seen] == [0, 1]
    for step, samples, metrics in seen:
        assert len(samples) == 16 and {s.version for s in samples} == {step}
        for group in range(4):
            members = [s for s in samples if s.group == group]
            assert [s.number for s in members] == [0, 1, 2, 3] and len({s.prompt for s in members}) == 1
            assert abs(sum(s.advantage for s in members)) < 1e-5
        for sample in samples:
            assert sample.tokens[: sample.start].tolist() == PROMPTS[sample.prompt]
            assert sample.truncated == (sample.tokens[-1] != END) and sample.length <= 6
            np.testing.assert_allclose(sample.sampler_logprobs, sample.old_logprobs, atol=2e-5)  # P-2
        reward = np.mean([bool(set(LIKED) & set(s.tokens[s.start :].tolist())) for s in samples])
        assert metrics["reward"][0] / metrics["reward"][1] == pytest.approx(reward)
    prompts = [{s.prompt for s in samples} for _, samples, _ in seen]
    assert not prompts[0] & prompts[1], "an epoch shows every prompt once"


@pytest.mark.parametrize("change", [{}, {"steps_per_rollout": 2, "iterations": 2}, {"lag": 1},
                                    {"use_adaptive_entropy": True, "entropy_target": 4.0, "steps_per_rollout": 2},
                                    {"zero_variance": "resample", "prompts_per_step": 3}])  # fmt: skip
def test_a_source_goes_on_from_every_saved_position_with_the_same_batches(change):
    grpo = dataclasses.replace(GRPO, **change)
    whole = source(grpo)
    batches, states = [], []
    for _ in range(6):
        states.append(json.loads(json.dumps(whole.state())))
        batches.append(whole.next(params()))
    for start in range(6):
        again = source(grpo)
        again.restore(states[start])
        for batch in batches[start:]:
            same(batch, again.next(params()))


def test_the_weight_of_the_entropy_bonus_is_led_by_what_was_drawn():
    """It rises below the target and falls above it, within its bounds, and counts at most up to the target; the weight
    of a rollout is the one that earlier ones led to."""
    settings = GrpoSection(use_adaptive_entropy=True, entropy_coef=0.02, entropy_target=1.0, entropy_coef_delta=0.015,
                           entropy_coef_max=0.03)  # fmt: skip

    def samples(*surprisals, offline=False):
        logprobs = [-np.asarray(values, np.float32) for values in surprisals]
        tokens = [np.zeros(1 + len(values), np.int32) for values in logprobs]
        made = [Sample(0, 0, i, 1, own, "", "stop", 0, offline) for i, own in enumerate(tokens)]
        for sample, values in zip(made, logprobs):
            sample.sampler_logprobs = values
        return made

    led = Leader(settings, settings.entropy_coef)
    low, high = samples([0.5], [0.5, 1.5, 0.7]), samples([0.9], [2.0, 2.0])
    metrics = led.lead(low)  # entropy 0.8: a mean over tokens, not over samples
    total, count = metrics["sampling/entropy"]
    assert total / count == pytest.approx(0.8) and metrics["entropy_coef"] == (0.02, 1.0)
    assert [sample.entropy_coef.tolist() for sample in low] == [[np.float32(0.02)], [np.float32(0.02)] * 3]
    assert led.coef == 0.03  # not 0.035
    led.lead(high)
    assert high[1].entropy_coef.tolist() == [0, 0] and led.coef == pytest.approx(0.015)
    elsewhere = [*samples([0.1], offline=True), *high]
    led.lead(elsewhere)  # 1.63 of the drawn ones, below the target with those from elsewhere
    assert led.coef == 0.0
    nothing = samples([0.1], offline=True)
    assert led.lead(nothing)["entropy_coef_applied"] == (0.0, 1.0) and led.coef == 0.0


def test_a_led_bonus_is_that_of_a_fixed_weight_while_it_counts():
    """The entropy that leads is the one that the loss reports, up to the drawing; a target that is never met is no
    bonus."""
    network, weights, _ = tiny()
    made = {
        target: source(dataclasses.replace(GRPO, entropy_coef=0.02, use_adaptive_entropy=True, entropy_target=target))
        for target in (0.01, 9.0)
    }
    fixed = source(dataclasses.replace(GRPO, entropy_coef=0.02))
    batches = {target: one.next(params()) for target, one in made.items()} | {"fixed": fixed.next(params())}
    loss = {
        name: objective.loss(network, weights, batch, (fixed if name == "fixed" else made[name]).plan.grpo)
        for name, batch in batches.items()
    }
    value = {name: float(total / weight) for name, ((total, weight), _) in loss.items()}
    assert value[9.0] == pytest.approx(value["fixed"], abs=1e-7) and value[0.01] > value["fixed"] + 0.01
    total, count = loss["fixed"][1]["entropy"]
    drawn, tokens = made[9.0].metrics()["sampling/entropy"]
    assert tokens == count and drawn / tokens == pytest.approx(float(total / count), rel=0.15)


def test_other_seeds_draw_others_and_a_changed_group_size_is_refused():
    first, other = source().next(params()), source(seed=1).next(params())
    assert not np.array_equal(first["tokens"], other["tokens"])
    state = source().state()
    with pytest.raises(UserError, match="group_size=4, now it is 8"):
        source(dataclasses.replace(GRPO, group_size=8)).restore(state)


def test_minibatches_and_iterations():
    made = source(dataclasses.replace(GRPO, prompts_per_step=2, steps_per_rollout=2, iterations=2))
    seen = kept(made)
    batches = [made.next(params()) for _ in range(4)]
    assert len(seen) == 1 and len(seen[0][1]) == 16
    same(batches[0], batches[2])
    same(batches[1], batches[3])
    assert all("old_logprobs" in batch for batch in batches)
    assert made.metrics() == {"time/pack": made.metrics()["time/pack"]}, "only the first minibatch tells of the rollout"


def test_weights_that_are_one_rollout_old():
    made = source(dataclasses.replace(GRPO, lag=1))
    seen = kept(made)
    for _ in range(4):
        made.next(params())
    assert [{s.version for s in samples} for _, samples, _ in seen] == [{0}, {0}, {1}, {2}]


def test_a_request_to_stop_ends_the_drawing_and_leaves_the_position():
    made = source()
    made.next(params())
    before = made.state()
    made.stop = lambda: True
    with pytest.raises(Preempted):
        made.next(params())
    assert made.state() == before
    made.stop = lambda: False
    again = source()
    again.next(params())
    same(made.next(params()), again.next(params()))


def loss_of(batch, grpo):
    network, weights, _ = tiny()
    total, weight = objective.loss(network, network.pack(weights), batch, grpo)[0]
    return float(total), float(weight)


@pytest.mark.parametrize("loss", ["grpo", "dapo", "dr_grpo", "luspo"])
@pytest.mark.parametrize("change", [{"samples": "positive"}, {"samples": "negative"}, {"zero_variance": "drop"},
                                    {"zero_variance": "renormalise"}, {"samples": "positive",
                                    "filter_denominator": "kept"}])  # fmt: skip
def test_samples_that_give_no_gradient_are_not_computed_and_the_loss_does_not_change(loss, change):
    grpo = dataclasses.replace(GRPO, loss=loss, **change)
    made = source(grpo, packing=False)
    seen = kept(made)
    batch = made.next(params())
    samples = seen[0][1]
    trained = [s for s in samples if s.trained]
    assert 0 < len(trained) < len(samples)
    assert np.sum(batch["trained"]) == np.sum(batch["example_mask"]) == len(trained)
    dropped = change.get("zero_variance") == "renormalise" or change.get("filter_denominator") == "kept"
    for sample in samples:
        in_full = not dropped or (sample.trained if "samples" in change else sample.advantage != 0)
        sample.counted = float(in_full)
    everything, _ = made.layout.batch(samples, made.plan.beside)
    np.testing.assert_allclose(loss_of(batch, grpo), loss_of(everything, grpo), rtol=1e-5)


def test_a_step_with_nothing_to_learn_has_weight_0():
    batch = source(liked=(99,)).next(params())  # nothing is ever liked: every group is dead
    assert loss_of(batch, GRPO) == (0.0, 0.0)


def test_dynamic_sampling_keeps_mixed_groups_and_uses_what_was_drawn_beyond_need():
    grpo = dataclasses.replace(GRPO, zero_variance="resample")
    made = source(grpo)
    seen = kept(made)
    for _ in range(3):
        made.next(params())
    drawn = made.cursor
    for _, samples, _ in seen:
        for group in range(4):
            assert len({s.correct for s in samples if s.group == group}) == 2, "every group is mixed"
    used = 3 * 4
    assert drawn % 4 == 0 and drawn > used and len(made.surplus) < 4
    # prompts stay in the order of the run: nothing that was mixed is passed over
    order = [s.version for _, samples, _ in seen for s in samples if s.number == 0]
    assert order == sorted(order)


def test_dynamic_sampling_gives_up_after_its_draws():
    rewards = Liking((99,))
    made = source(dataclasses.replace(GRPO, zero_variance="resample", max_resamples=2), rewards=rewards)
    assert loss_of(made.next(params()), GRPO) == (0.0, 0.0)
    assert rewards.calls == 3 * 4


def test_offline_solutions_stand_where_no_answer_was_right():
    solution = [19, 18, 7, END]
    grpo = dataclasses.replace(GRPO, offline_fraction=0.125, offline_per_prompt=1)
    made = source(grpo, solutions=[[solution]] * len(PROMPTS))
    seen = kept(made)
    batch = made.next(params())
    samples = seen[0][1]
    offline = [s for s in samples if s.offline]
    assert offline and np.sum(batch["offline"]) == len(offline)
    for sample in offline:
        members = [s for s in samples if s.group == sample.group]
        assert sample.tokens[sample.start :].tolist() == solution and sample.correct and sample.number == 0
        np.testing.assert_allclose(sample.advantage, 3 / np.sqrt(4), atol=1e-5)  # (G - 1) / sqrt(G)
        np.testing.assert_allclose([s.advantage for s in members[1:]], -1 / np.sqrt(4), atol=1e-5)
    right = {s.group for s in samples if s.correct and not s.offline}
    assert not right & {s.group for s in offline}, "a group with a right answer keeps its own"


def test_relative_length_makes_solved_groups_alive():
    everything = {"relative_length_budget": 2.0, "relative_length": True}
    made = source(liked=(99,), reward=RewardSection(**everything))
    made.rewards.submit = lambda row, texts, ids, step, greedy: [[1.0] for _ in ids]
    seen = kept(made)
    made.next(params())
    samples, metrics = seen[0][1:]
    for group in range(4):
        members = [s for s in samples if s.group == group]
        lengths = [s.length for s in members]
        if len(set(lengths)) > 1:
            by_length = sorted(members, key=lambda s: s.length)
            assert by_length[0].advantage > 0 > by_length[-1].advantage
        else:
            assert not any(s.advantage for s in members)
    assert metrics["rlr/active_samples"] == (16.0, 16.0)


def test_reference_log_probabilities_are_those_of_the_reference():
    grpo = dataclasses.replace(GRPO, beta=0.1)
    made = source(grpo)
    made.reference = jax.tree.map(lambda leaf: leaf * 1.1, params())
    seen = kept(made)
    batch = made.next(params())
    assert "reference_logprobs" in batch and "old_logprobs" not in batch
    own = source(grpo)
    own.reference = params()
    again = kept(own)
    own.next(params())
    for sample, with_itself in zip(seen[0][1], again[0][1], strict=True):
        np.testing.assert_allclose(with_itself.reference_logprobs, sample.sampler_logprobs, atol=2e-5)
        assert np.abs(sample.reference_logprobs - sample.sampler_logprobs).max() > 1e-3
