"""Measuring ranked lists: every model on the same queries, with means, errors clustered by user and paired comparisons.

A neural model takes part by giving its ranked lists; nothing here knows how they were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from model.baselines.tuning import Tuned, tune
from model.data.sequences import Queries, Sequences, Split
from model.data.splits import expand
from model.intervals import Difference, Estimate, UserBootstrap
from model.metrics import ACCURACY, coverage, intra_list_diversity, ndcg, novelty, recall
from model.metrics.hits import Float64, Ranked
from model.replay import replay

KS = (10, 20)
HISTORY_EDGES = (0, 1, 10, 50, 200, 1000)  # a bucket of history lengths begins at each


@dataclass(frozen=True)
class ModelResult:
    """One model's figures.

    Attributes:
        settings: what it was run with, the values chosen on validation included.
        metrics: "<metric>@<k>" -> estimate.
        by_history: bucket of the number of events in the input, in order -> ndcg at the largest k.
    """

    settings: dict[str, float | str]
    metrics: dict[str, Estimate]
    by_history: dict[str, Estimate]


@dataclass(frozen=True)
class EvaluationReport:
    """Several models on the same queries.

    Attributes:
        dataset, fingerprint: its name and content; protocol: "loo", "time" or "basket"; part: "test" or "valid".
        state: "live" (the baselines have met every earlier event of everyone) or "frozen" (only the user's own).
        refit: what was trained anew along the way, in words.
        filter_seen: whether items of the user's past were taken out.
        valid_cut_ms, cut_ms: where validation and test begin; 0 for loo.
        queries, users, items: how many were asked, by how many users, among how many items.
        mean_targets: true items per query.
        unseen_targets: share of the targets that have no positive training event.
        ks: the cut-offs.
        ours: name of the model that the others are compared with, or None.
        models: results by name.
        comparisons: other model -> "<metric>@<k>" -> ours minus it.
        history_queries: bucket -> number of queries.
        resamples, seed: of the bootstrap over users.
    """

    dataset: str
    protocol: str
    part: str
    state: str
    refit: str
    filter_seen: bool
    valid_cut_ms: int
    cut_ms: int
    queries: int
    users: int
    items: int
    mean_targets: float
    unseen_targets: float
    ks: tuple[int, ...]
    ours: str | None
    models: dict[str, ModelResult]
    comparisons: dict[str, dict[str, Difference]] = field(default_factory=dict)
    history_queries: dict[str, int] = field(default_factory=dict)
    resamples: int = 1000
    seed: int = 0
    fingerprint: str = ""


def baseline_lists(
    seq: Sequences, split: Split, *, k: int = max(KS), queries: int = 2000, seed: int = 0, neighbours: bool = False
) -> tuple[dict[str, npt.NDArray[np.int32]], dict[str, dict[str, float]], Tuned]:
    """Tune the baselines on validation and let them answer the test queries; `queries`, `seed` and `neighbours` as in `tune`.

    For the test they are fitted on the rows before `split.train_end` and, unless the protocol is leave-one-out, go on with
    everything that happens up to each query, the validation part included.

    Returns:
        (Q, k) ranked lists and the chosen settings, both by name, and the tuning's own figures.
    """
    tuned = tune(seq, split, queries=queries, seed=seed, neighbours=neighbours)
    ranked = replay(
        seq,
        split.test,
        tuned.baselines,
        known=split.train_end,
        k=k,
        filter_seen=split.filter_seen,
        live=split.protocol != "loo",
    )
    return ranked, {baseline.name: baseline.parameters() for baseline in tuned.baselines}, tuned


def training_counts(seq: Sequences, split: Split) -> Float64:
    """(N,) positive training events of each item."""
    rows = expand(seq.offsets[:-1], split.train_end, np.arange(seq.users))
    rows = rows[seq.positive[rows]]
    return np.bincount(seq.item[rows], minlength=seq.items).astype(np.float64)


def per_query(
    ranked: Ranked,
    queries: Queries,
    ks: tuple[int, ...] = KS,
    item_vectors: npt.NDArray[np.floating] | None = None,
    popularity: Float64 | None = None,
) -> dict[str, Float64]:
    """(Q,) values by "<metric>@<k>"; `item_vectors` (N, D) adds diversity, `popularity` (N,) training counts add novelty."""
    values: dict[str, Float64] = {}
    for k in ks:
        values |= {f"{name}@{k}": metric(ranked, queries, k) for name, metric in ACCURACY.items()}
        if item_vectors is not None:
            values[f"intra_list_diversity@{k}"] = intra_list_diversity(ranked, item_vectors, k)
        if popularity is not None:
            values[f"novelty@{k}"] = novelty(ranked, popularity, k)
    return values


def summarise(
    ranked: Ranked,
    queries: Queries,
    seq: Sequences,
    k: tuple[int, ...] = KS,
    item_vectors: npt.NDArray[np.floating] | None = None,
    popularity: Float64 | None = None,
    bootstrap: UserBootstrap | None = None,
) -> dict[str, Estimate]:
    """All metrics of one model's lists.

    Args:
        ranked: (Q, K >= max(k)) item rows, best first, -1 from where a list ends.
        queries: Q queries.
        seq: for the size of the catalogue.
        k: the cut-offs.
        item_vectors: (N, D), for intra-list diversity.
        popularity: (N,) training counts, for novelty.
        bootstrap: over `queries.user`; give one to share it between models. None: a new one with its defaults.

    Raises:
        ValueError: the lists do not fit the queries, repeat an item or name one outside the catalogue.
    """
    check_lists(ranked, seq.items)
    bootstrap = bootstrap or UserBootstrap(queries.user)
    values = per_query(ranked, queries, k, item_vectors, popularity)
    return {name: bootstrap.estimate(each) for name, each in values.items()} | {
        f"coverage@{cut}": Estimate(coverage(ranked, seq.items, cut)) for cut in k
    }


def check_lists(ranked: Ranked, items: int) -> None:
    """Refuse lists that would flatter or break the metrics.

    Raises:
        ValueError: a row outside -1..items-1, an item twice in a list, or an item after the end of a list.
    """
    if ranked.ndim != 2 or ranked.dtype.kind != "i":
        raise ValueError(f"expected ranked lists as a (Q, K) array of signed integers, got {ranked.dtype} {ranked.shape}")
    if ranked.size and (ranked.min() < -1 or ranked.max() >= items):
        raise ValueError(f"a ranked list names a row outside the catalogue of {items} items")
    if ((ranked[:, :-1] < 0) & (ranked[:, 1:] >= 0)).any():
        raise ValueError("a ranked list goes on after its end (-1)")
    ordered = np.sort(ranked, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
    if twice.any():
        raise ValueError(f"the ranked list of query {int(twice.argmax())} has an item twice")


def history_buckets(seq: Sequences, queries: Queries) -> dict[str, npt.NDArray[np.bool_]]:
    """Label -> (Q,) mask of the queries whose input has so many events; buckets without a query are left out."""
    length = queries.position - seq.offsets[queries.user]
    bucket = np.searchsorted(HISTORY_EDGES, length, side="right") - 1
    masks = {}
    for index, low in enumerate(HISTORY_EDGES):
        if index + 1 == len(HISTORY_EDGES):
            label = f"{low}+"
        else:
            high = HISTORY_EDGES[index + 1] - 1
            label = str(low) if high == low else f"{low}-{high}"
        if (bucket == index).any():
            masks[label] = bucket == index
    return masks


def evaluate(
    seq: Sequences,
    split: Split,
    ranked_by_model: Mapping[str, Ranked],
    *,
    dataset: str = "",
    fingerprint: str = "",
    part: Literal["test", "valid"] = "test",
    ours: str | None = None,
    settings: Mapping[str, Mapping[str, float | str]] | None = None,
    refit: str = "nothing is trained after the validation cut",
    ks: tuple[int, ...] = KS,
    item_vectors: npt.NDArray[np.floating] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> EvaluationReport:
    """Measure several models' lists on one part of a split.

    Args:
        seq, split: what was asked.
        ranked_by_model: name -> (Q, K >= max(ks)) item rows for the queries of `part`, -1 from where a list ends.
        dataset, fingerprint, refit: words for the report.
        ours: the model to compare the others with, by paired bootstrap.
        settings: name -> settings to record.
        ks: the cut-offs; the largest is the headline.
        item_vectors: (N, D), the same for all models, for intra-list diversity.
        resamples, seed: of the bootstrap over users.

    Raises:
        ValueError: there is no query, `ours` is not among the models, or lists that `summarise` refuses (named).
    """
    queries = getattr(split, part)
    if not len(queries):
        raise ValueError(f"the {part} part has no query")
    if ours is not None and ours not in ranked_by_model:
        raise ValueError(f"ours is {ours!r}, expected one of {sorted(ranked_by_model)}")
    bootstrap = UserBootstrap(queries.user, resamples, seed)
    counts = training_counts(seq, split)
    buckets = history_buckets(seq, queries)
    within = {label: UserBootstrap(queries.user[mask], resamples, seed) for label, mask in buckets.items()}
    top = max(ks)
    headline: dict[str, dict[str, Float64]] = {}
    models: dict[str, ModelResult] = {}
    for name, ranked in ranked_by_model.items():
        try:
            metrics = summarise(ranked, queries, seq, ks, item_vectors, counts, bootstrap)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        headline[name] = {f"recall@{top}": recall(ranked, queries, top)} | {f"ndcg@{k}": ndcg(ranked, queries, k) for k in ks}
        models[name] = ModelResult(
            settings=dict((settings or {}).get(name, {})),
            metrics=metrics,
            by_history={label: within[label].estimate(headline[name][f"ndcg@{top}"][mask]) for label, mask in buckets.items()},
        )
    comparisons: dict[str, dict[str, Difference]] = {}
    if ours is not None:
        for name in models.keys() - {ours}:
            comparisons[name] = {key: bootstrap.difference(value, headline[name][key]) for key, value in headline[ours].items()}
    return EvaluationReport(
        dataset=dataset,
        protocol=split.protocol,
        part=part,
        state="frozen" if split.protocol == "loo" else "live",
        refit=refit,
        filter_seen=split.filter_seen,
        valid_cut_ms=split.valid_cut_ms,
        cut_ms=split.cut_ms,
        queries=len(queries),
        users=len(np.unique(queries.user)),
        items=seq.items,
        mean_targets=float(np.diff(queries.target_offsets).mean()),
        unseen_targets=float((counts[queries.target] == 0).mean()) if len(queries.target) else 0.0,
        ks=tuple(ks),
        ours=ours,
        models=models,
        comparisons={name: comparisons[name] for name in models if name in comparisons},
        history_queries={label: int(mask.sum()) for label, mask in buckets.items()},
        resamples=resamples,
        seed=seed,
        fingerprint=fingerprint,
    )
