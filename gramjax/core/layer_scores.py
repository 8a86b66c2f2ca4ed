"""How differently the layers of a model treat languages, from how often each MLP neuron is active in each.

A neuron is active at a token when its gate is above 0 (Tang et al. 2024, LAPE). `counts` [K, L, I] are its active
tokens, `totals` [K] the tokens; K languages, L layers, I neurons of a layer. Every score is high where a layer is
specific to languages, and has one number per layer; the terms of each language are beside it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

NAMES = ("msd_prob", "msd_split_half", "msd_count", "msd_count_mean", "msd_active_mean", "one_minus_overlap",
         "one_minus_own_overlap", "lape_count", "one_minus_entropy")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Activity:
    """How often neurons are active, with the texts of each language in one or two halves (H)."""

    counts_KHLI: np.ndarray
    totals_KH: np.ndarray
    pivot: int = 0
    """The language that the others are compared with (English)."""

    @property
    def counts(self) -> np.ndarray:
        """[K, L, I]"""
        return self.counts_KHLI.sum(axis=1)

    @property
    def totals(self) -> np.ndarray:
        """[K]"""
        return self.totals_KH.sum(axis=1)

    @property
    def probabilities(self) -> np.ndarray:
        """[K, L, I]"""
        return self.counts / self.totals[:, None, None]


@dataclasses.dataclass(frozen=True)
class Score:
    """One number per layer, and what each language adds to it [K, L] (0 for the one that is compared with)."""

    by_layer: np.ndarray
    by_language: np.ndarray


def activity(counts: np.ndarray, totals: np.ndarray, pivot: int = 0) -> Activity:
    """Counts without halves, [K, L, I] and [K]."""
    return Activity(np.asarray(counts)[:, None], np.asarray(totals)[:, None], pivot)


def scores(
    seen: Activity, debias: bool = True, threshold: float = 0.5, share: float = 0.01, quantile: float = 0.95
) -> dict[str, Score]:
    """Every score that the counts allow (`msd_split_half` needs halves)."""
    p_KLI = seen.probabilities
    active_KLI = p_KLI > threshold
    made: dict[str, Callable[[], Score]] = {
        "msd_prob": lambda: msd_prob(seen, debias),
        "msd_split_half": lambda: msd_split_half(seen),
        "msd_count": lambda: msd_count(active_KLI, seen.pivot),
        "msd_count_mean": lambda: deviation(active_KLI.mean(axis=2)),
        "msd_active_mean": lambda: deviation(p_KLI.mean(axis=2)),
        "one_minus_overlap": lambda: one_minus(overlap(active_KLI, seen.pivot), seen.pivot),
        "one_minus_own_overlap": lambda: one_minus(own_overlap(active_KLI, seen.pivot), seen.pivot),
        "lape_count": lambda: lape_count(p_KLI, share, quantile),
        "one_minus_entropy": lambda: one_minus_entropy(p_KLI),
    }
    halves = seen.totals_KH.shape[1] == 2 and seen.totals_KH.min() > 0
    return {name: make() for name, make in made.items() if halves or name != "msd_split_half"}


def over_languages(terms_KL: np.ndarray, pivot: int) -> Score:
    """The mean over the languages other than the pivot."""
    others = np.delete(terms_KL, pivot, axis=0)
    shown = terms_KL.copy()
    shown[pivot] = 0.0
    return Score(others.mean(axis=0), shown)


def msd_prob(seen: Activity, debias: bool = True) -> Score:
    """Mean squared difference of the probabilities of each neuron to those in the pivot.

    `debias` takes away what drawing the tokens adds to the square of a difference, as if they were independent.
    """
    p_KLI, n_K = seen.probabilities, seen.totals.astype(np.float64)
    terms = np.mean(np.square(p_KLI - p_KLI[seen.pivot]), axis=2)
    if debias:
        variance_KL = np.mean(p_KLI * (1 - p_KLI), axis=2) / np.maximum(n_K - 1, 1)[:, None]
        terms = terms - variance_KL - variance_KL[seen.pivot]
    return over_languages(terms, seen.pivot)


def msd_split_half(seen: Activity) -> Score:
    """The same, as the product of the differences in two halves of the texts: unbiased also where the tokens of a text
    depend on each other, as long as texts do not."""
    p_KHLI = seen.counts_KHLI / seen.totals_KH[:, :, None, None]
    difference = p_KHLI - p_KHLI[seen.pivot]
    return over_languages(np.mean(difference[:, 0] * difference[:, 1], axis=2), seen.pivot)


def msd_count(active_KLI: np.ndarray, pivot: int) -> Score:
    """Squared difference of the shares of active neurons to that of the pivot."""
    share_KL = active_KLI.mean(axis=2)
    return over_languages(np.square(share_KL - share_KL[pivot]), pivot)


def deviation(share_KL: np.ndarray) -> Score:
    """Squared deviation of a share of active neurons (above the threshold, or at a token on average) from its mean over
    all languages."""
    terms = np.square(share_KL - share_KL.mean(axis=0))
    return Score(terms.mean(axis=0), terms)


def overlap(active_KLI: np.ndarray, pivot: int) -> np.ndarray:
    """Neurons active in both over those active in either, [K, L]; 1 where there are none."""
    both = np.sum(active_KLI & active_KLI[pivot], axis=2)
    either = np.sum(active_KLI | active_KLI[pivot], axis=2)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def own_overlap(active_KLI: np.ndarray, pivot: int) -> np.ndarray:
    """Neurons active in both over those active in the language, [K, L]; 1 where there are none."""
    both = np.sum(active_KLI & active_KLI[pivot], axis=2)
    own = np.sum(active_KLI, axis=2)
    return np.where(own > 0, both / np.maximum(own, 1), 1.0)


def one_minus(share_KL: np.ndarray, pivot: int) -> Score:
    """What is not shared with the pivot."""
    return over_languages(1.0 - share_KL, pivot)


def language_entropy(p_KLI: np.ndarray) -> np.ndarray:
    """Entropy of which language a neuron is active in, [L, I], from 0 to log K; NaN for one that never is."""
    total_LI = p_KLI.sum(axis=0)
    share = np.divide(p_KLI, total_LI, out=np.zeros_like(p_KLI), where=total_LI > 0)
    terms = np.where(share > 0, share * np.log(np.where(share > 0, share, 1.0)), 0.0)
    return np.where(total_LI > 0, -terms.sum(axis=0), np.nan)


def one_minus_entropy(p_KLI: np.ndarray) -> Score:
    """1 less the mean entropy of a layer's neurons over its largest value, log K."""
    entropy_LI = language_entropy(p_KLI)
    known = ~np.isnan(entropy_LI)
    mean = np.where(known, entropy_LI, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return Score(1.0 - mean / np.log(len(p_KLI)), np.zeros(p_KLI.shape[:2]))


def lape(p_KLI: np.ndarray, share: float = 0.01, quantile: float = 0.95) -> np.ndarray:
    """The language-specific neurons of LAPE by language, bool [K, L, I].

    Of the neurons that are in some language more often active than the bar (a quantile of all probabilities), the
    `share` of all neurons that has the lowest language entropy; each belongs to the languages in which it passes the
    bar.
    """
    bar = np.quantile(p_KLI, quantile, method="inverted_cdf")
    entropy_LI = np.where(np.any(p_KLI > bar, axis=0), language_entropy(p_KLI), np.inf)
    entropy_LI = np.where(np.isnan(entropy_LI), np.inf, entropy_LI)
    order = np.argsort(entropy_LI, axis=None, kind="stable")[: round(share * entropy_LI.size)]
    taken = np.zeros(entropy_LI.size, bool)
    taken[order] = np.isfinite(entropy_LI.ravel()[order])
    return taken.reshape(entropy_LI.shape) & (p_KLI > bar)


def lape_count(p_KLI: np.ndarray, share: float = 0.01, quantile: float = 0.95) -> Score:
    """Language-specific neurons of each layer."""
    specific_KLI = lape(p_KLI, share, quantile)
    return Score(specific_KLI.any(axis=0).sum(axis=1).astype(float), specific_KLI.sum(axis=2).astype(float))
