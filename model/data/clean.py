"""Cleaning with a report: every row that does not come out is counted under one reason, and the sums add up.

Rules run in the order in which an importer calls them; a row that two rules would drop counts under the first. All rules take and
leave the canonical column names (see `dataset.EVENT_COLUMNS`) plus whatever the importer still needs.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Literal

import polars as pl
from rich.table import Table

EARLIEST_MS = 788_918_400_000  # 1995-01-01T00:00:00Z: no web shop, no rating site
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
EXAMPLES = 60
LONGEST_ID = {"user_id": 256, "item_id": 256, "type": 128}
"""Most characters that the service takes: of ids in an event, and of an event type in a bundle."""
LARGEST_NUMBER = 1e15
"""The service takes no larger one; it is far from where sums of float32 become infinite."""
ID_RULE = "user_id, item_id or type is empty, has a control character, or is too long (ids 256 characters, types 128)"


@dataclass(frozen=True)
class Reason:
    """One rule's toll: `rows` were dropped, or merged into another row; `examples` say which values, and how often."""

    name: str
    kind: Literal["dropped", "merged"]
    rows: int
    rule: str
    examples: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CleaningReport:
    """`rows_read == rows_kept + dropped + merged`, always."""

    rows_read: int
    rows_kept: int
    reasons: list[Reason]

    @property
    def dropped(self) -> int:
        return sum(reason.rows for reason in self.reasons if reason.kind == "dropped")

    @property
    def merged(self) -> int:
        return sum(reason.rows for reason in self.reasons if reason.kind == "merged")

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"dropped": self.dropped, "merged": self.merged}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> CleaningReport:
        raw = json.loads(text)
        return cls(raw["rows_read"], raw["rows_kept"], [Reason(**reason) for reason in raw["reasons"]])

    def table(self) -> Table:
        """The report as a table for the terminal."""
        table = Table(title="cleaning", title_justify="left")
        table.add_column("reason")
        table.add_column("rows", justify="right")
        table.add_column("rule", overflow="fold")
        table.add_row("read", f"{self.rows_read:,}", "")
        for reason in self.reasons:
            table.add_row(f"{reason.name} ({reason.kind})", f"-{reason.rows:,}" if reason.rows else "0", reason.rule)
        table.add_section()
        table.add_row("kept", f"{self.rows_kept:,}", "")
        return table


class Cleaning:
    """The frame on its way through the rules, and the toll so far."""

    def __init__(self, events: pl.DataFrame) -> None:
        self.events = events
        self._read = events.height
        self._reasons: list[Reason] = []

    def report(self) -> CleaningReport:
        return CleaningReport(self._read, self.events.height, list(self._reasons))

    def drop(self, name: str, rule: str, bad: pl.Expr, examples_of: str | None = None) -> None:
        """Drop the rows where `bad` is true (null is not true), naming values of the column `examples_of` in the report."""
        mask = self.events.select(bad.fill_null(False).alias("bad")).get_column("bad")
        examples: dict[str, int] = {}
        if examples_of is not None:
            counts = self.events.filter(mask).group_by(pl.col(examples_of).cast(pl.String)).len()
            counts = counts.sort(["len", examples_of], descending=[True, False], nulls_last=True).head(EXAMPLES)
            examples = {str(value): rows for value, rows in counts.iter_rows()}
        self._reasons.append(Reason(name, "dropped", int(mask.sum()), rule, examples))
        self.events = self.events.filter(~mask)

    def missing_user(self) -> None:
        self.drop("missing user", "user_id is missing or empty", _missing("user_id"))

    def missing_item(self) -> None:
        bad = _missing("item_id")
        if "text" in self.events.columns:
            bad = bad & _missing("text")
        self.drop("missing item", "neither an item_id nor a text", bad)
        # An event with a text but a blank item_id is one without an item.
        self.events = self.events.with_columns(pl.when(~_missing("item_id")).then(pl.col("item_id")).alias("item_id"))

    def refused_ids(self) -> None:
        """Drop rows whose user, item or type the service could never be told: the model would know what nobody can name."""
        refused = [_refused(c, most) for c, most in LONGEST_ID.items() if c in self.events.columns]
        self.drop("id the service does not take", ID_RULE, pl.any_horizontal(refused))

    def impossible_time(self, now_ms: int | None = None) -> None:
        """Drop times before 1995, more than a day ahead of `now_ms` (default: the clock), or unparsable (null by now)."""
        latest = (int(time.time() * 1000) if now_ms is None else now_ms) + DAY_MS
        when = pl.col("timestamp")
        self.drop(
            "impossible time",
            "not a time, before 1995-01-01, or more than a day in the future",
            when.is_null() | (when < EARLIEST_MS) | (when > latest),
        )

    def exact_duplicates(self) -> None:
        """Drop rows that repeat an earlier row in every column; the first stays."""
        rule = "a row equal to an earlier one in every column"
        self.drop("exact duplicate", rule, ~pl.struct(pl.all()).is_first_distinct())

    def merge_basket_rows(self) -> None:
        """Merge rows of one basket with the same user, item and type; the merged row stands where the first stood.

        Quantities are summed (null if none is known); the price is the mean weighted by quantity (a row without one counts 1);
        every other column is the first row's. Rows without a basket or an item are left alone.
        """
        rule = "same basket, user, item and type: quantities summed, price = mean weighted by quantity, place of the first row"
        key = ["basket_id", "user_id", "item_id", "type"]
        rows = self.events.with_row_index("_row")
        mergeable = pl.col("basket_id").is_not_null() & pl.col("item_id").is_not_null()
        weight = pl.col("quantity").fill_null(1).clip(lower_bound=1e-9)
        known = pl.col("price").is_not_null()
        merged = (
            rows.filter(mergeable)
            .group_by(key, maintain_order=True)
            .agg(
                pl.exclude(*key, "quantity", "price").first(),
                pl.when(pl.col("quantity").count() > 0).then(pl.col("quantity").sum()).alias("quantity"),
                ((pl.col("price") * weight).sum() / weight.filter(known).sum()).fill_nan(None).alias("price"),
            )
            .select(rows.columns)
        )
        before = self.events.height
        self.events = pl.concat([merged, rows.filter(~mergeable)], how="vertical_relaxed").sort("_row").drop("_row")
        self._reasons.append(Reason("repeated in basket", "merged", before - self.events.height, rule))

    def amounts(self) -> None:
        """Drop rows whose quantity is not positive, whose price is negative, or of which a number is infinite or beyond what the
        service takes; a missing amount is only missing."""
        numbers = [name for name in ("value", "quantity", "price") if name in self.events.columns]
        self.drop(
            "impossible amount",
            "quantity zero or below, price below zero, or a number beyond 1e15 (a cancellation's quantity is positive by then)",
            (pl.col("quantity") <= 0) | (pl.col("price") < 0) | pl.any_horizontal(pl.col(numbers).abs() > LARGEST_NUMBER),
        )

    def robots(self, acts_per_hour: int) -> None:
        """Drop every event of users with more than `acts_per_hour` acts in one clock hour; a basket is one act, however large.

        Counting baskets and not rows keeps the wholesaler who orders 500 articles on one invoice.
        """
        by = ["user_id", pl.col("timestamp") // HOUR_MS]
        if "basket_id" in self.events.columns:
            alone = pl.col("basket_id").is_null().sum()
            acts = (pl.col("basket_id").drop_nulls().n_unique() + alone).alias("acts")
        else:
            acts = pl.len().alias("acts")
        hours = self.events.group_by(by).agg(acts)
        robots = hours.filter(pl.col("acts") > acts_per_hour).get_column("user_id").unique()
        rule = f"user with more than {acts_per_hour:,} acts in one clock hour (a basket is one act)"
        self.drop("robot", rule, pl.col("user_id").is_in(robots.implode()), examples_of="user_id")


def _refused(column: str, most: int) -> pl.Expr:
    name = pl.col(column)
    return (name.str.len_chars() == 0) | (name.str.len_chars() > most) | name.str.contains(r"[\x00-\x1f\x7f-\x9f]")


def _missing(column: str) -> pl.Expr:
    return pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")
