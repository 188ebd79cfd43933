"""Images that do not fit: probably mislabelled ones, and outliers, found in the features of a network.

A label is doubted where a head that has not seen the image is confident of another class (confident learning, Northcutt, Jiang and Chuang
2021). An outlier is far from its nearest neighbours.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from headstart.train.head import held_out_scores, standardised
from headstart.train.metrics import softmax

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
FEWEST = 5  # images of a class below which nothing is said about its labels
LITTLE = 0.7  # share of the usual probability below which a label is doubted
NEIGHBOURS = 5
FAR = 4.0  # robust standard deviations from which on an image is an outlier
FEW = 20  # images below which distances say nothing


@dataclass(frozen=True)
class Doubt:
    """A label that is probably wrong.

    Args:
        index: Which example.
        label: Its class.
        likely: The class that the head says.
        label_probability: What the head gives the label.
        likely_probability: What it gives the other class.
    """

    index: int
    label: int
    likely: int
    label_probability: float
    likely_probability: float


def doubtful_labels(features: Floats, labels: Ints, classes: int, seed: int = 0) -> list[Doubt]:
    """Examples whose label is doubted, the clearest first.

    The head is confident of class j where it gives it at least the mean probability that it gives j to examples of class j. Clear is what
    gets little of the probability that its own class usually gets.
    """
    probabilities = softmax(held_out_scores(features, labels, classes, seed))  # (N, V)
    counts = np.bincount(labels, minlength=classes)
    own = probabilities[np.arange(len(labels)), labels]
    usual = np.array([own[labels == j].mean() if counts[j] >= FEWEST else np.inf for j in range(classes)])  # (V,)
    confident = np.where(probabilities >= usual, probabilities, 0.0)
    likely = confident.argmax(axis=1)
    share = own / usual[labels]
    found = (confident.max(axis=1) > 0) & (likely != labels) & (counts[labels] >= FEWEST) & (share < LITTLE)
    order = [int(i) for i in np.argsort(share, kind="stable") if found[i]]
    return [Doubt(i, int(labels[i]), int(likely[i]), float(own[i]), float(probabilities[i, likely[i]])) for i in order]


def outliers(features: Floats) -> list[tuple[int, float]]:
    """Index and distance of the examples that are far from all others, the farthest first.

    The distance is the mean over the nearest neighbours, by the cosine; its logarithm is measured in robust standard deviations (1.4826
    median absolute deviations) from the median.
    """
    if len(features) < FEW:
        return []
    distance = np.log(np.maximum(neighbour_distances(features), 1e-6))
    centre = np.median(distance)
    spread = 1.4826 * float(np.median(np.abs(distance - centre)))
    score = (distance - centre) / max(spread, 1e-6)
    return [(int(i), float(score[i])) for i in np.argsort(-score, kind="stable") if score[i] > FAR]


def neighbour_distances(features: Floats) -> Doubles:
    """Mean cosine distance (N,) of each example to its nearest neighbours, in blocks so that memory stays small."""
    x = torch.from_numpy(standardised(features)[0])
    x = torch.nn.functional.normalize(x, dim=1)
    count = min(NEIGHBOURS, len(x) - 1)
    found = []
    for start in range(0, len(x), 1024):
        near = x[start : start + 1024] @ x.T  # (up to 1024, N)
        rows = torch.arange(len(near))
        near[rows, rows + start] = -2.0  # not itself
        found.append(1 - near.topk(count, dim=1).values.mean(1))
    return np.asarray(torch.cat(found))
