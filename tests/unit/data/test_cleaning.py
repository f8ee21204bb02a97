from __future__ import annotations

from typing import Annotated

import polars as pl
from pydantic import Field, TypeAdapter, ValidationError

from model.data.clean import EARLIEST_MS, Cleaning, CleaningReport

NOW = 1_700_000_000_000


def lines(**columns):
    rows = len(next(iter(columns.values())))
    usual = {"user_id": ["u"] * rows, "item_id": ["i"] * rows, "type": ["purchase"] * rows, "timestamp": [NOW] * rows}
    return pl.DataFrame({**usual, **columns}, strict=False)


def invoice(quantity, price, item=None, basket=None):
    rows = len(quantity)
    return lines(
        item_id=item or ["i"] * rows,
        basket_id=basket or ["b"] * rows,
        quantity=pl.Series(quantity, dtype=pl.Float64),
        price=pl.Series(price, dtype=pl.Float64),
        note=[f"row {n}" for n in range(rows)],
    )


def test_rows_read_are_rows_kept_plus_dropped_plus_merged_whatever_the_rules():
    cleaning = Cleaning(
        lines(
            user_id=["u", None, " ", "u", "u", "u", "u"],
            item_id=["i", "i", "i", None, "i", "i", "i"],
            timestamp=[NOW, NOW, NOW, NOW, None, NOW, NOW],
            basket_id=["b"] * 7,
            quantity=[1.0, 1, 1, 1, 1, 1, 2],
            price=[1.0] * 7,
        )
    )
    cleaning.missing_user()
    cleaning.missing_item()
    cleaning.impossible_time(NOW)
    cleaning.exact_duplicates()
    cleaning.merge_basket_rows()
    report = cleaning.report()
    assert [(r.name, r.rows) for r in report.reasons] == [
        ("missing user", 2),
        ("missing item", 1),
        ("impossible time", 1),
        ("exact duplicate", 1),
        ("repeated in basket", 1),
    ]
    assert report.rows_read == report.rows_kept + report.dropped + report.merged == 7


def test_ids_that_the_service_refuses_are_dropped_and_the_sums_add_up():
    cleaning = Cleaning(
        lines(
            user_id=["u", "a\nb", "u" * 256, "u" * 257, "u", "u", "u", "u", "ü \u200d"],
            item_id=["i", "i", "i", "i", "\x7f", "i\x85", "i" * 257, "i", "i"],
            type=["t", "t", "t" * 128, "t", "t", "t", "t", "", "t" * 129],
        )
    )
    cleaning.refused_ids()
    report = cleaning.report()
    assert [(r.name, r.rows) for r in report.reasons] == [("id the service does not take", 7)]
    assert cleaning.events.get_column("user_id").to_list() == ["u", "u" * 256]
    assert report.rows_read == report.rows_kept + report.dropped + report.merged == 9


def test_what_is_kept_is_what_the_service_takes():
    ids = ["u", "", "\n", "\x00", "\x1f", " ", "\x7f", "\x9f", "\xa0", "é" * 256, "é" * 257, "😀" * 256, "a\u2028b"]
    cleaning = Cleaning(lines(user_id=ids))
    cleaning.refused_ids()
    service = TypeAdapter(Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")])

    def taken(user_id):
        try:
            return bool(service.validate_python(user_id))
        except ValidationError:
            return False

    assert cleaning.events.get_column("user_id").to_list() == [user_id for user_id in ids if taken(user_id)]


def test_a_blank_item_beside_a_text_is_no_item():
    cleaning = Cleaning(lines(item_id=["", "  ", None, "i"], text=["shoes"] * 4))
    cleaning.missing_item()
    cleaning.refused_ids()
    assert cleaning.events.get_column("item_id").to_list() == [None, None, None, "i"]


def test_a_merged_row_sums_quantities_and_weighs_prices_by_them():
    cleaning = Cleaning(invoice([3, 1], [2.0, 6.0]))
    cleaning.merge_basket_rows()
    assert cleaning.events.select("quantity", "price").row(0) == (4.0, 3.0)  # (3*2 + 1*6) / 4


def test_numbers_that_are_infinite_or_larger_than_the_service_takes_are_impossible_amounts():
    most = pl.Series([1e15, -1e15, 1.0, None, float("inf"), float("-inf"), 1e39, 2e15], dtype=pl.Float64)
    for column in ("value", "quantity", "price"):
        for dtype in (pl.Float64, pl.Float32):
            of = lines(**{"quantity": [1] * 8, "price": [1.0] * 8, column: most.cast(dtype)})
            cleaning = Cleaning(of)
            cleaning.amounts()
            refused = 4 + (column != "value")  # of these two, also the number below zero
            assert [(r.name, r.rows) for r in cleaning.report().reasons] == [("impossible amount", refused)]
            assert cleaning.events[column].drop_nulls().is_finite().all()


def test_a_merged_row_stands_where_its_first_row_stood():
    cleaning = Cleaning(invoice([1, 1, 1, 1], [1.0] * 4, item=["a", "b", "a", "c"]))
    cleaning.merge_basket_rows()
    assert cleaning.events.get_column("item_id").to_list() == ["a", "b", "c"]
    assert cleaning.events.get_column("note").to_list() == ["row 0", "row 1", "row 3"]


def test_merging_keeps_an_unknown_amount_unknown():
    cleaning = Cleaning(invoice([None, None], [None, None]))
    cleaning.merge_basket_rows()
    assert cleaning.events.select("quantity", "price").rows() == [(None, None)]


def test_a_missing_quantity_counts_once_in_the_mean_price_but_adds_nothing_to_the_sum():
    cleaning = Cleaning(invoice([3, None], [2.0, 6.0]))
    cleaning.merge_basket_rows()
    assert cleaning.events.select("quantity", "price").row(0) == (3.0, 3.0)


def test_rows_without_a_basket_are_never_merged():
    cleaning = Cleaning(invoice([1, 2], [1.0, 1.0]).with_columns(pl.lit(None, pl.String).alias("basket_id")))
    cleaning.merge_basket_rows()
    assert cleaning.events.height == 2


def test_a_purchase_and_a_cancellation_in_one_basket_stay_two_rows():
    cleaning = Cleaning(invoice([1, 1], [1.0, 1.0]).with_columns(pl.Series("type", ["purchase", "cancellation"])))
    cleaning.merge_basket_rows()
    assert cleaning.events.height == 2


def test_times_are_possible_from_1995_to_a_day_ahead_both_included():
    day = 86_400_000
    cleaning = Cleaning(lines(timestamp=[EARLIEST_MS - 1, EARLIEST_MS, NOW + day, NOW + day + 1, None]))
    cleaning.impossible_time(NOW)
    assert cleaning.events.get_column("timestamp").to_list() == [EARLIEST_MS, NOW + day]


def test_an_event_with_a_text_needs_no_item():
    cleaning = Cleaning(lines(item_id=[None, None, "i"], text=["blue teapot", "", None]))
    cleaning.missing_item()
    assert cleaning.events.get_column("text").to_list() == ["blue teapot", None]


def test_a_robot_is_told_by_its_rate_and_a_large_invoice_is_one_act():
    hour = 3_600_000
    start = NOW // hour * hour
    robot = lines(
        user_id=["robot"] * 4, timestamp=[start + n for n in range(4)], basket_id=pl.Series([None] * 4, dtype=pl.String)
    )
    slow = lines(
        user_id=["slow"] * 4, timestamp=[start + n * hour for n in range(4)], basket_id=pl.Series([None] * 4, dtype=pl.String)
    )
    wholesaler = lines(user_id=["wholesaler"] * 50, timestamp=[start] * 50, basket_id=["b"] * 50)
    cleaning = Cleaning(pl.concat([robot, slow, wholesaler]))
    cleaning.robots(acts_per_hour=3)
    assert set(cleaning.events.get_column("user_id")) == {"slow", "wholesaler"}
    assert cleaning.report().reasons[0].examples == {"robot": 4}


def test_the_report_survives_json_and_shows_every_reason_in_the_terminal():
    cleaning = Cleaning(lines(user_id=["u", None]))
    cleaning.missing_user()
    report = cleaning.report()
    assert CleaningReport.from_json(report.to_json()) == report
    assert list(report.table().columns[0].cells) == ["read", "missing user (dropped)", "kept"]
