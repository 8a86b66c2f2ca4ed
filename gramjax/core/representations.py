"""What is done with preference representations: similarity to a target set, selection, probes. NumPy only.

Letters: N vectors of a pool, M of a target set, P wide. Nothing holds N x M numbers at once.
"""

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np

CHUNK = 8192
"""Vectors that are worked on at once."""
MOST = 2**25
"""Similarities that exist at once."""


def parts(count: int, columns: int = 1) -> list[slice]:
    """Slices of `count` rows, each short enough for its similarities to `columns` others."""
    step = max(1, min(CHUNK, MOST // max(columns, 1)))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


@dataclasses.dataclass(frozen=True)
class Space:
    """How vectors are seen before they are compared: a mean, a direction to drop, a whitening."""

    mean: np.ndarray
    dropped: np.ndarray | None = None
    """Unit vector [P] whose component is removed."""
    whitening: np.ndarray | None = None
    """[P, P]; distances after it are Mahalanobis distances."""

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """Centred, deflated and whitened vectors, float32."""
        out = np.asarray(vectors, np.float32) - self.mean
        if self.dropped is not None:
            out = out - np.outer(out @ self.dropped, self.dropped)
        return out if self.whitening is None else out @ self.whitening


def space(pool: np.ndarray, dropped: np.ndarray | None = None, shrinkage: float | None = None) -> Space:
    """The space of a pool [N, P]: its mean; without the direction `dropped`; with `shrinkage` (the weight of a multiple
    of the identity in the covariance, above 0) whitened."""
    mean = np.asarray(pool, np.float64).mean(axis=0).astype(np.float32) if len(pool) else np.zeros(pool.shape[1])
    unit = None if dropped is None else (dropped / max(np.linalg.norm(dropped), 1e-12)).astype(np.float32)
    plain = Space(mean, unit)
    if shrinkage is None:
        return plain
    total = np.zeros((pool.shape[1], pool.shape[1]))
    for rows in parts(len(pool)):
        part = plain.project(pool[rows]).astype(np.float64)
        total += part.T @ part
    covariance = total / max(len(pool), 1)
    scale = max(np.trace(covariance) / len(covariance), 1e-12)
    shrunk = (1 - shrinkage) * covariance + shrinkage * scale * np.eye(len(covariance))
    values, directions = np.linalg.eigh(shrunk)
    return Space(mean, unit, ((directions / np.sqrt(np.maximum(values, 1e-12))) @ directions.T).astype(np.float32))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1 (a zero vector stays zero)."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def similarities(one: np.ndarray, two: np.ndarray, distance: str) -> np.ndarray:
    """`cosine`: products of unit vectors; `mahalanobis`: minus the distance (of whitened vectors)."""
    product = one @ two.T
    if distance == "cosine":
        return product
    squares = np.sum(one * one, 1)[:, None] + np.sum(two * two, 1)[None, :] - 2 * product
    return -np.sqrt(np.maximum(squares, 0.0))


def top_mean(values: np.ndarray, count: int) -> np.ndarray:
    """Mean of the `count` largest values of each row."""
    count = min(count, values.shape[1])
    return np.partition(values, values.shape[1] - count, axis=1)[:, values.shape[1] - count :].mean(axis=1)


def scores(
    pool: np.ndarray,
    target: np.ndarray,
    seen: Space,
    neighbours: int = 8,
    distance: str = "cosine",
    centroid: bool = False,
) -> np.ndarray:
    """Similarity of every vector of the pool [N, P] to the target set [M, P]: the mean over its `neighbours` most
    similar members, or the similarity to their mean vector (`centroid`)."""
    members = prepared(target, seen, distance)
    if centroid:
        members = _centre(members, distance)
    out = np.empty(len(pool), np.float32)
    for rows in parts(len(pool), len(members)):
        out[rows] = top_mean(similarities(prepared(pool[rows], seen, distance), members, distance), neighbours)
    return out


def prepared(vectors: np.ndarray, seen: Space, distance: str) -> np.ndarray:
    """Vectors in a space, of length 1 for cosines."""
    out = seen.project(vectors)
    return unit(out) if distance == "cosine" else out


def _centre(members: np.ndarray, distance: str) -> np.ndarray:
    centre = members.mean(axis=0, keepdims=True)
    return unit(centre) if distance == "cosine" else centre


def left_out_scores(
    target: np.ndarray, seen: Space, neighbours: int = 8, distance: str = "cosine", centroid: bool = False
) -> np.ndarray:
    """The score of each member of the target set [M, P] against the others."""
    members = prepared(target, seen, distance)
    if centroid:
        total = members.sum(axis=0)
        rest = (total - members) / max(len(members) - 1, 1)
        if distance == "cosine":
            return np.sum(members * unit(rest), axis=1)
        return -np.linalg.norm(members - rest, axis=1)
    out = np.empty(len(members), np.float32)
    for rows in parts(len(members), len(members)):
        part = similarities(members[rows], members, distance)
        part[np.arange(len(part)), rows.start + np.arange(len(part))] = -np.inf
        out[rows] = top_mean(part, min(neighbours, len(members) - 1))
    return out


def best(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` largest values, best first; equal ones in their order."""
    return np.argsort(-values, kind="stable")[:count]


def facility_location(vectors: np.ndarray, relevance: np.ndarray, count: int, diversity: float) -> np.ndarray:
    """Indices of `count` of C candidates (unit vectors [C, P]), greedily.

    Maximises (1 - diversity) * the sum of their relevance + diversity * (count / C) * the sum, over all candidates, of
    the cosine (0 at least) to the nearest chosen one. Both parts lie between 0 and `count`. Gains only fall while the
    selection grows, so most of them need not be computed again; C x C numbers never exist at once.
    """
    candidates = len(vectors)
    weight = diversity * count / max(candidates, 1)
    modular = (1 - diversity) * relevance
    gains = np.empty(candidates)
    for rows in parts(candidates, candidates):
        part = np.maximum(vectors[rows] @ vectors.T, 0.0) if diversity else np.zeros((1, 1))
        gains[rows] = modular[rows] + weight * part.sum(axis=1)
    covered = np.zeros(candidates, np.float32)
    heap = [(-gain, index, 0) for index, gain in enumerate(gains)]
    heapq.heapify(heap)
    chosen: list[int] = []
    while heap and len(chosen) < count:
        gain, index, known = heapq.heappop(heap)
        if known == len(chosen) or not diversity:
            chosen.append(index)
            if diversity:
                covered = np.maximum(covered, vectors @ vectors[index])
            continue
        near = np.maximum(vectors @ vectors[index], 0.0)
        gain = modular[index] + weight * float(np.maximum(near - covered, 0.0).sum())
        heapq.heappush(heap, (-gain, index, len(chosen)))
    return np.array(chosen, np.int64)


def effective_rank(vectors: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values of the centred vectors [N, P]: 1 for vectors on a line."""
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(_covariance(vectors)), 0.0))
    shares = values / max(values.sum(), 1e-30)
    shares = shares[shares > 1e-12]
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 1.0


def _covariance(vectors: np.ndarray) -> np.ndarray:
    mean = np.asarray(vectors, np.float64).mean(axis=0)
    total = np.zeros((vectors.shape[1], vectors.shape[1]))
    for rows in parts(len(vectors)):
        part = np.asarray(vectors[rows], np.float64) - mean
        total += part.T @ part
    return total / max(len(vectors), 1)


def plane(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The vectors [N, P] on their first two principal axes [N, 2], and the share of the variance along each.

    The sign of an axis is such that its largest entry is positive, so that the picture does not turn around.
    """
    values, directions = np.linalg.eigh(_covariance(vectors))
    axes = directions[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    mean = np.asarray(vectors, np.float64).mean(axis=0)
    points = np.concatenate([(vectors[rows] - mean) @ axes for rows in parts(len(vectors))])
    return points, values[::-1][:2] / max(values.sum(), 1e-30)


@dataclasses.dataclass(frozen=True)
class Linear:
    """A fitted linear map of vectors."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    intercept: np.ndarray

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return ((np.asarray(vectors, np.float64) - self.mean) / self.scale) @ self.weights + self.intercept


def ridge(vectors: np.ndarray, targets: Any, penalty: float = 1.0) -> Linear:
    """Least squares with `penalty` times the squared weights, on standardised vectors [N, P]; the mean is free."""
    x, y = np.asarray(vectors, np.float64), np.asarray(targets, np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    centred = (x - mean) / scale
    gram = centred.T @ centred + penalty * np.eye(x.shape[1])
    return Linear(mean, scale, np.linalg.solve(gram, centred.T @ (y - y.mean(axis=0))), y.mean(axis=0))


def probe_accuracy(
    vectors: np.ndarray, labels: Sequence[str], penalty: float = 1.0, folds: int = 5, seed: int = 0
) -> float | None:
    """How well a linear map tells the labels of held-out vectors (cross-validated); None where there is one label, or
    fewer vectors than folds."""
    names, classes = np.unique(np.asarray(labels, str), return_inverse=True)
    if len(names) < 2 or len(classes) < folds:
        return None
    fold = np.random.default_rng(seed).permutation(len(classes)) % folds
    right = 0
    for held in range(folds):
        learned, asked = fold != held, fold == held
        told = ridge(vectors[learned], np.eye(len(names))[classes[learned]], penalty)(vectors[asked])
        right += int((told.argmax(axis=1) == classes[asked]).sum())
    return right / len(classes)
