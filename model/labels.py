"""What items are about, in words: categories where the data has them, clusters of their texts where it has none.

The names under which a user's interests are shown.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from model.nets.leaning import MOST

LEAST_ITEMS = 2
CLUSTERS = 32
WORDS = 3
LONGEST = 128
"""Characters of a name: what a manifest takes."""


@dataclass(frozen=True)
class Labels:
    """C names, and how much of each of N items belongs to each: (N, C), rows sum to 1, or to 0 for an item without any."""

    names: list[str]
    share: npt.NDArray[np.float32]


def item_labels(items: pl.DataFrame, text: npt.NDArray[np.float32] | None, seed: int = 0) -> Labels | None:
    """Labels of a vocabulary; None where there are neither categories nor texts.

    Args:
        items: `title` and `categories` by row. text: (N, W) embeddings of the titles, or None.

    The `MOST` most frequent categories that at least `LEAST_ITEMS` items have; an item of several belongs to each in equal parts.
    Blank categories are none: "a||b" has two.
    """
    listed = items.get_column("categories").fill_null([]).to_list() if "categories" in items.columns else []
    categories = [{name.strip()[:LONGEST] for name in names if name and name.strip()} for names in listed]
    counts: dict[str, int] = {}
    for names in categories:
        for name in names:
            counts[name] = counts.get(name, 0) + 1
    known = sorted((name for name, count in counts.items() if count >= LEAST_ITEMS), key=lambda name: (-counts[name], name))[
        :MOST
    ]
    if len(known) > 1:
        column = {name: index for index, name in enumerate(known)}
        share = np.zeros((len(items), len(known)), np.float32)
        for row, names in enumerate(categories):
            share[row, [column[name] for name in names if name in column]] = 1
        return Labels(known, share / np.maximum(1, share.sum(1, keepdims=True)))
    if text is None or len(items) < 4 * CLUSTERS:
        return None
    return _clusters(items.get_column("title").fill_null("").to_list(), text, seed)


def _clusters(titles: list[str], text: npt.NDArray[np.float32], seed: int) -> Labels | None:
    """Clusters of texts, each named by the words that tell it from the others; None where all texts are one."""
    from sklearn.cluster import KMeans  # a second to import
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different texts than clusters: some are empty, and left out
        used, cluster = np.unique(KMeans(CLUSTERS, n_init=1, random_state=seed).fit_predict(text), return_inverse=True)
    if len(used) < 2:
        return None
    share = np.eye(len(used), dtype=np.float32)[cluster]
    words = TfidfVectorizer(token_pattern=r"(?u)\b[^\W\d]{3,}\b", stop_words="english")
    together = [" ".join(title for title, of in zip(titles, cluster, strict=True) if of == c) for c in range(len(used))]
    try:
        weight, vocabulary = words.fit_transform(together).toarray(), words.get_feature_names_out()
    except ValueError:  # titles without words
        return Labels([f"group {c + 1}" for c in range(len(used))], share)
    names: list[str] = []
    for c in range(len(used)):
        best = [str(vocabulary[w]) for w in np.argsort(-weight[c], kind="stable")[:WORDS] if weight[c, w] > 0]
        name = (", ".join(best) or f"group {c + 1}")[: LONGEST - len(f" ({CLUSTERS})")]
        names.append(name if name not in names else f"{name} ({c + 1})")
    return Labels(names, share)
