"""Cold items: some held out of a data set altogether, to be ranked later by what is known of them without a single event."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from model.data.build import Dataset, with_events
from model.data.dataset import to_sequences
from model.data.errors import DataError
from model.data.sequences import Queries, Sequences, Split
from model.data.splits import basket_starts, baskets, clock, select

SHARE = 0.1
SEED = 0  # the same items whatever the seed of a training, so that seeds can be averaged


@dataclass(frozen=True)
class HeldOut:
    """A data set in two.

    Attributes:
        whole: as it was. warm: without a trace of the cold items: no event of any type, no row among the items.
        cold: (C) ids of the cold items, ascending.
    """

    whole: Dataset
    warm: Dataset
    cold: list[str]


def hold_out(dataset: Dataset, share: float = SHARE, seed: int = SEED) -> HeldOut:
    """Hold a share of the items that have a title and an event out of a data set: which ones depends on ids and seed alone.

    Raises:
        DataError: fewer than one item would be held out.
    """
    sold = dataset.events.select(pl.col("item_id").drop_nulls().unique())
    named = dataset.items.filter(pl.col("title").fill_null("") != "").join(sold, on="item_id", how="semi")
    ids = named.get_column("item_id").sort().to_list()
    count = round(share * len(ids))
    if count < 1:
        raise DataError(f"{dataset.manifest.name}: {share:.0%} of {len(ids)} items with a title is none to hold out")
    chosen = np.random.default_rng(seed).choice(len(ids), count, replace=False)
    cold = [ids[row] for row in np.sort(chosen).tolist()]
    warm = with_events(
        dataset,
        dataset.events.filter(~pl.col("item_id").is_in(cold).fill_null(False)),
        dataset.items.filter(~pl.col("item_id").is_in(cold)),
        notes=[*dataset.manifest.notes, f"{count} items are held out: a share of {share} with seed {seed}"],
    )
    return HeldOut(dataset, warm, cold)


def with_cold_items(seq: Sequences, cold: list[str]) -> Sequences:
    """The same events over a vocabulary that goes on after its N rows with the C cold items, which no event has."""
    return replace(seq, item_ids=[*seq.item_ids, *cold])


def cold_split(held_out: HeldOut, seq: Sequences, split: Split) -> Split:
    """The baskets of a split as questions for their cold items.

    A basket is asked for where the warm sequences have its first event, and from what they have before it; its targets are its
    cold items alone. A basket without a cold item asks nothing, and one of cold items alone has no place in the sequences.

    Args:
        seq, split: of `held_out.warm`, next basket; rows of cold items follow the N of `seq`.
    """
    whole = to_sequences(held_out.whole, [*seq.item_ids, *held_out.cold])
    wanted = baskets(whole)
    cold = wanted.target >= seq.items
    query = np.repeat(np.arange(len(wanted)), np.diff(wanted.target_offsets))[cold]
    count = np.bincount(query, minlength=len(wanted))
    wanted = replace(wanted, target_offsets=np.concatenate([[0], np.cumsum(count)]), target=wanted.target[cold])
    # Both have the same events in the same order but for those of the cold items.
    stays = ~np.isin(_item_of_row(held_out.whole), held_out.cold)
    ends = np.append(basket_starts(whole)[1:], len(whole.item))[np.searchsorted(basket_starts(whole), wanted.position)]
    before = np.concatenate([[0], np.cumsum(stays)])
    wanted = select(replace(wanted, position=before[wanted.position]), (count > 0) & (before[ends] > before[wanted.position]))
    now = clock(seq)[wanted.position]
    wanted = replace(wanted, user=seq.user[wanted.position], as_of=now)

    def part(chosen: npt.NDArray[np.bool_]) -> Queries:
        return select(wanted, chosen)

    late, known = now >= split.cut_ms, now < split.valid_cut_ms
    return replace(split, valid=part(~late & ~known), test=part(late))


def _item_of_row(dataset: Dataset) -> npt.NDArray[np.object_]:
    """(E,) item ids in the order of the sequences: users sorted, each one's events as they came."""
    ids = dataset.events.sort("user_id", maintain_order=True).get_column("item_id").fill_null("")
    rows: npt.NDArray[np.object_] = ids.to_numpy()
    return rows
