"""Scores of layers by the activity of their neurons, and the rules that choose, on layers that are planted."""

import math

import numpy as np
import pytest

from gramjax.core import layer_rules, layer_scores
from gramjax.core.errors import UserError
from gramjax.core.layer_rules import Rule, choose

LAYERS, WIDTH, NEURONS, LANGUAGES, TOKENS = 12, 32, 128, 6, 400
DECOYS = (10, 11)


def planted(seed: int, count: int, decoys: tuple[int, ...] = DECOYS, parallel: bool = False) -> layer_scores.Activity:
    """Random gates over the same content in six languages; in the lowest `count` layers and in the decoys a direction
    of the language, of norm 2, is added. Parallel: the tokens are the same, not only their distribution."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((LANGUAGES, LAYERS, NEURONS), np.int64)
    for layer in range(LAYERS):
        gate = rng.standard_normal((WIDTH, NEURONS), dtype=np.float32)
        x = rng.standard_normal((1 if parallel else LANGUAGES, TOKENS, WIDTH), dtype=np.float32)
        x = np.repeat(x, LANGUAGES // len(x), axis=0)
        if layer < count or layer in decoys:
            direction = rng.standard_normal((LANGUAGES, 1, WIDTH), dtype=np.float32)
            x = x + 2 * direction / np.linalg.norm(direction, axis=2, keepdims=True)
        active = x.reshape(-1, 50, WIDTH) @ gate > 0  # pieces so small that BLAS starts no threads
        counts[:, layer] = np.sum(active.reshape(LANGUAGES, TOKENS, NEURONS), axis=1)
    return layer_scores.activity(counts, np.full(LANGUAGES, TOKENS))


def test_planted_layers_are_found_below_decoys():
    """S-5: a prefix well above the middle is found; the highest scores alone are taken in by the decoys."""
    found = {"prefix_threshold": 0, "topk": 0}
    for seed in range(100):
        count = 1 + seed % 4
        score = layer_scores.msd_prob(planted(seed, count)).by_layer.tolist()
        for rule in found:
            found[rule] += choose(score, Rule(rule, k=count)).layers == tuple(range(count))
    assert found["prefix_threshold"] >= 95 and found["topk"] <= 30


def test_no_layer_is_found_where_none_is_planted():
    scores = [layer_scores.msd_prob(planted(1000 + seed, 0, ())).by_layer.tolist() for seed in range(60)]
    assert sum(bool(choose(score, Rule("prefix_threshold")).layers) for score in scores) <= 3


@pytest.mark.parametrize("name", ["msd_prob", "msd_count", "one_minus_overlap"])
def test_every_score_finds_the_layers_without_decoys(name):
    for seed in range(12):
        count = 1 + seed % 4
        score = layer_scores.scores(planted(seed, count, (), parallel=True))[name].by_layer
        assert choose(score.tolist(), Rule("topk", k=count)).layers == tuple(range(count)), seed


@pytest.mark.parametrize("tokens,raw", [(50, 6.7e-3), (200, 1.7e-3), (1000, 3.3e-4)])
def test_what_drawing_adds_is_taken_away(tokens, raw):
    """S-6: two languages that are the same differ by E p(1-p) 2/n in the square: 1/(3n) for uniform p."""
    rng = np.random.default_rng(0)
    p = np.broadcast_to(rng.uniform(size=(1, 1, 1, 20000)), (2, 2, 1, 20000))
    seen = layer_scores.Activity(rng.binomial(tokens // 2, p), np.full((2, 2), tokens // 2))
    assert layer_scores.msd_prob(seen, debias=False).by_layer[0] == pytest.approx(raw, rel=0.05)
    assert abs(layer_scores.msd_prob(seen).by_layer[0]) < 2e-4
    assert abs(layer_scores.msd_split_half(seen).by_layer[0]) < 2e-4


def test_halves_see_through_tokens_that_depend_on_each_other():
    """Every token counted five times: the bias is that of a fifth of the tokens, which `debias` cannot know."""
    rng = np.random.default_rng(0)
    p = np.broadcast_to(rng.uniform(size=(1, 1, 1, 20000)), (2, 2, 1, 20000))
    seen = layer_scores.Activity(5 * rng.binomial(40, p), np.full((2, 2), 200))
    assert layer_scores.msd_prob(seen).by_layer[0] > 1e-3
    assert abs(layer_scores.msd_split_half(seen).by_layer[0]) < 2e-4


# -- by hand -----------------------------------------------------------------------------------------------------------

ONE = layer_scores.activity(np.array([[[10, 10, 0, 0]], [[10, 0, 10, 0]], [[10, 10, 10, 10]]]), np.full(3, 10))
"""One layer, four neurons, always or never active: the first language, one with another set, one with all."""


@pytest.mark.smoke
def test_scores_by_hand():
    found = layer_scores.scores(ONE, debias=False, share=0.5)
    # differences of probabilities: two of four neurons in either language
    assert found["msd_prob"].by_layer[0] == pytest.approx(0.5)
    # shares of active neurons 1/2, 1/2, 1: only the last differs from the first
    assert found["msd_count"].by_language[:, 0].tolist() == [0, 0, 0.25]
    assert found["msd_count"].by_layer[0] == pytest.approx(0.125)
    assert found["msd_count_mean"].by_layer[0] == pytest.approx(np.var([0.5, 0.5, 1.0]))
    assert found["msd_active_mean"].by_layer[0] == pytest.approx(np.var([0.5, 0.5, 1.0]))  # always or never active
    active = ONE.probabilities > 0.5
    assert layer_scores.overlap(active, 0)[:, 0] == pytest.approx([1, 1 / 3, 1 / 2])
    assert layer_scores.own_overlap(active, 0)[:, 0] == pytest.approx([1, 1 / 2, 1 / 2])
    assert found["one_minus_overlap"].by_layer[0] == pytest.approx(1 - (1 / 3 + 1 / 2) / 2)
    assert "msd_split_half" not in found  # there are no halves


def test_language_entropy_by_hand():
    p = np.array([[[0.5, 1.0, 0.0, 0.2]], [[0.5, 0.0, 0.0, 0.6]]])
    entropy = layer_scores.language_entropy(p)[0]
    assert entropy[:2] == pytest.approx([math.log(2), 0.0]) and math.isnan(entropy[2])
    assert entropy[3] == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    known = entropy[[0, 1, 3]].mean() / math.log(2)
    assert layer_scores.one_minus_entropy(p).by_layer[0] == pytest.approx(1 - known)


def test_lape_takes_frequent_neurons_of_one_language():
    p = np.full((2, 3, 100), 0.3)
    p[:, 2, 7] = 0.9  # frequent in both
    p[0, 1, 5], p[1, 1, 5] = 0.9, 0.01  # frequent in the first alone
    p[0, 0, 3], p[1, 0, 3] = 0.2, 0.0  # of one language, but rare
    specific = layer_scores.lape(p, share=1 / 300, quantile=0.95)
    assert np.argwhere(specific).tolist() == [[0, 1, 5]]
    both = layer_scores.lape_count(p, share=2 / 300, quantile=0.95)
    assert both.by_layer.tolist() == [0, 1, 1] and both.by_language.tolist() == [[0, 1, 1], [0, 0, 1]]


# -- rules -------------------------------------------------------------------------------------------------------------


def test_the_middle_third():
    assert [list(layer_rules.middle(n)) for n in (12, 5, 2)] == [[4, 5, 6, 7], [1, 2, 3], [0, 1]]
    assert layer_rules.middle(32) == range(10, 22)


def test_a_prefix_that_does_not_stand_out_is_chosen_with_a_warning():
    low = [5.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 6.0]
    assert choose(low, Rule("prefix_topk", k=2)) == layer_rules.Choice((0, 1), "prefix_topk(k=2)")
    flat = choose(low[2:], Rule("prefix_topk", k=2))
    assert flat.layers == (0, 1) and "do not stand out" in flat.warnings[0]
    assert "nothing is left" in choose([2.0, 1.0], Rule("prefix_topk", k=2)).warnings[0]


@pytest.mark.smoke
def test_rules_by_hand():
    scores = [1.0, 3.0, 3.0, 0.0, 0.0, 9.0, 0.0, 8.0]
    assert choose(scores, Rule("topk", k=3)).layers == (1, 5, 7)  # of equal scores the lower layer
    assert choose(scores, Rule("window", k=2)).layers == (1, 2)  # the upper half is not looked at
    assert choose(scores, Rule("explicit", layers=(4, 2, 4))).layers == (2, 4)
    nothing = choose(scores, Rule("prefix_threshold"))
    assert nothing.layers == () and "no layer is chosen" in nothing.warnings[0]


def test_random_layers_are_different_ones_and_reach_all():
    drawn = [choose([0.0] * 40, Rule("random", k=6, seed=seed)).layers for seed in range(60)]
    assert all(len(set(layers)) == 6 for layers in drawn) and len(set(drawn)) > 55
    assert {layer for layers in drawn for layer in layers} == set(range(40))
    assert drawn[3] == choose([1.0] * 40, Rule("random", k=6, seed=3)).layers


@pytest.mark.parametrize(
    "rule,message",
    [
        (Rule("best"), "rule='best' is not one of"),
        (Rule("topk", k=0), "k=0: 1 to 8 of 8"),
        (Rule("prefix_topk", k=9), "k=9: 1 to 8 of 8"),
        (Rule("window", k=5), "k=5: 1 to 4 of 8 layers can be chosen in the lower half"),
        (Rule("explicit"), "layers is empty"),
        (Rule("explicit", layers=(8,)), "layer 8 does not exist; the model has layers 0 to 7"),
    ],
)
def test_rules_that_cannot_be_followed(rule, message):
    with pytest.raises(UserError, match=message):
        choose([0.0] * 8, rule)


def counts(known: dict[int, float], layers: int) -> list[float]:
    """Counts at the layers that are given, straight lines between."""
    return np.interp(range(layers), sorted(known), [known[layer] for layer in sorted(known)]).tolist()


LLAMA2_7B = counts({0: 1127, 1: 160, 2: 7, 3: 0, 10: 43, 11: 80, 21: 80, 22: 250, 26: 314, 27: 240, 29: 210,
                    31: 240}, 32)  # fmt: skip
LLAMA2_13B = counts({0: 1176, 1: 1018, 2: 9, 3: 7, 5: 18, 20: 170, 28: 210, 29: 300, 31: 300, 32: 200, 38: 290,
                     39: 382}, 40)  # fmt: skip
"""Language-specific neurons per layer as far as they are known of LAPE's lists (S-7), which are not at hand themselves:
the counts of some layers, the six highest, and the shares of the lowest and the uppermost six; what lies between is
made up to agree with these."""


@pytest.mark.parametrize(
    "scores,highest,lower,upper",
    [(LLAMA2_7B, (0, 22, 23, 24, 25, 26), 0.27, 0.29), (LLAMA2_13B, (0, 1, 29, 30, 31, 39), 0.28, 0.20)],
    ids=["7b", "13b"],
)
def test_the_highest_scores_of_real_models_lie_at_both_ends(scores, highest, lower, upper):
    """Why the rules look at a prefix: the upper end is as specific to languages, and is not what SLAM wants."""
    shares = [sum(scores[:6]) / sum(scores), sum(scores[-6:]) / sum(scores)]
    assert shares == pytest.approx([lower, upper], abs=0.01)
    assert choose(scores, Rule("topk", k=6)).layers == highest
    assert choose(scores, Rule("prefix_threshold")).layers == (0, 1)
