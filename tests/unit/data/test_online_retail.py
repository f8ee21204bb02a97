from __future__ import annotations

import zipfile
from datetime import datetime

import polars as pl
import pytest

from model.data.errors import DataError
from model.data.importers import online_retail
from model.data.importers.registry import importer_for

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
INVOICE = [
    '536365,85123A,WHITE  HANGING HEART ,6,12/1/10 8:26,2.5,17850,"United Kingdom"',
    '536365,71053,WHITE METAL LANTERN,6,12/1/10 8:26,3.39,17850,"United Kingdom"',
    '536365,85123a,WHITE HANGING HEART,2,12/1/10 8:27,4.5,17850,"United Kingdom"',  # merges with the first, a minute later
    '536365,71053,WHITE METAL LANTERN,6,12/1/10 8:26,3.39,17850,"United Kingdom"',  # exact duplicate
    '536366,POST,POSTAGE,1,12/1/10 9:00,18,17850,"United Kingdom"',
    '536367,22423,check,-5,12/1/10 9:05,0,,"United Kingdom"',
    '536368,22423,REGENCY CAKESTAND 3 TIER,1,12/1/10 9:10,0,17850,"United Kingdom"',
    'C536379,71053,WHITE METAL LANTERN,-2,12/2/10 9:41,3.39,17850,"United Kingdom"',
    "536380,22423,REGENCY CAKESTAND 3 TIER,1,not a day,10.95,12583,France",
    "536381,22423,REGENCY CAKESTAND 3 TIER,1,12/3/10 10:00,10.95,12583,Unspecified",
    "536382,22423,REGENCY CAKESTAND 3 TIER,1,12/4/10 10:00,10.95,12583,France",
]


def csv(folder, lines=INVOICE, name="Online Retail.csv", header=HEADER):
    path = folder / name
    path.write_bytes("\n".join([header, *lines]).encode("latin-1"))
    return path


def reasons(dataset):
    return {reason.name: reason.rows for reason in dataset.cleaning.reasons if reason.rows}


def test_every_row_of_a_hand_made_file_is_accounted_for(tmp_path):
    dataset = online_retail.read(csv(tmp_path))
    assert reasons(dataset) == {
        "missing user": 1,
        "impossible time": 1,
        "exact duplicate": 1,
        "non-product": 1,
        "free of charge": 1,
        "repeated in basket": 1,
    }
    report = dataset.cleaning
    assert report.rows_read == 11 == report.rows_kept + report.dropped + report.merged
    assert next(r for r in report.reasons if r.name == "non-product").examples == {"POST": 1}


def test_repeated_rows_of_an_invoice_become_one_event_at_the_first_place_and_time(tmp_path):
    events = online_retail.read(csv(tmp_path)).events.filter(pl.col("basket_id") == "536365")
    assert events.get_column("item_id").to_list() == ["85123A", "71053"]
    assert events.get_column("quantity").to_list() == [8.0, 6.0]
    assert events.get_column("price").to_list() == pytest.approx([3.0, 3.39])  # (6 * 2.5 + 2 * 4.5) / 8
    assert events.get_column("timestamp").unique().to_list() == [1291191960000]  # 2010-12-01 08:26 UTC


def test_a_cancellation_is_a_negative_event_with_a_positive_quantity(tmp_path):
    dataset = online_retail.read(csv(tmp_path))
    polarity = {event_type.name: event_type.polarity for event_type in dataset.manifest.event_types}
    assert polarity == {"purchase": "positive", "cancellation": "negative"}
    cancelled = dataset.events.filter(pl.col("type") == "cancellation")
    assert cancelled.select("item_id", "quantity", "basket_id").rows() == [("71053", 2.0, "C536379")]


def test_a_stock_code_that_the_service_refuses_is_counted_under_its_own_reason(tmp_path):
    long = f"536383,{'7' * 257},LANTERN,1,12/4/10 10:00,3.39,12583,France"
    dataset = online_retail.read(csv(tmp_path, [*INVOICE, long]))
    assert reasons(dataset)["id the service does not take"] == 1
    assert dataset.cleaning.rows_read == 12 == dataset.cleaning.rows_kept + dataset.cleaning.dropped + dataset.cleaning.merged


def test_a_title_comes_from_sales_and_never_from_a_stock_takers_note(tmp_path):
    titles = dict(online_retail.read(csv(tmp_path)).items.select("item_id", "title").rows())
    assert titles == {
        "22423": "REGENCY CAKESTAND 3 TIER",
        "71053": "WHITE METAL LANTERN",
        "85123A": "WHITE HANGING HEART",  # blanks at the end and twice in a row are not part of it
    }


def test_the_country_is_the_first_that_is_stated_and_customers_are_whole_numbers(tmp_path):
    path = csv(tmp_path, [line.replace("12583", "12583.0") for line in INVOICE])
    assert online_retail.read(path).users.rows() == [("12583", None), ("17850", "United Kingdom")]


def test_an_invoice_stays_together_when_another_of_the_same_minute_is_mixed_in(tmp_path):
    mixed = [
        f"{invoice},{item},THING,1,12/1/10 8:26,1,7,Italy" for invoice, item in [(1, 10001), (2, 10002), (1, 10003), (2, 10004)]
    ]
    events = online_retail.read(csv(tmp_path, mixed)).events
    assert events.select("basket_id", "item_id").rows() == [("1", "10001"), ("1", "10003"), ("2", "10002"), ("2", "10004")]


def test_the_earlier_file_stops_on_the_first_day_of_the_later_one(tmp_path):
    def line(invoice, when):
        return f"{invoice},10001,THING,1,{when},1,7,Italy"

    csv(tmp_path, [line(1, "2010-11-30 23:59"), line(2, "2010-12-01 07:00"), line(3, "2010-12-01 09:00")], "retail_a.csv")
    csv(tmp_path, [line(3, "2010-12-01 09:00"), line(4, "2011-01-01 09:00")], "retail_b.csv")
    dataset = online_retail.read(tmp_path)
    assert dataset.events.get_column("basket_id").to_list() == ["1", "3", "4"]
    assert reasons(dataset) == {"overlap of two files": 2}


def test_two_years_glued_into_one_file_are_told_apart(tmp_path):
    when = ["2010-11-30 08:00:00", "2010-12-05 08:00:00", "2010-12-01 08:00:00", "2010-12-05 08:00:00"]
    glued = [f"{i},10001,THING,1,{t},1,7,Italy" for i, t in zip([1, 2, 3, 2], when, strict=True)]
    header = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"
    dataset = online_retail.read(csv(tmp_path, glued, "online_retail_II.csv", header))
    assert dataset.events.get_column("basket_id").to_list() == ["1", "3", "2"]
    assert reasons(dataset) == {"overlap of two files": 1}


def test_a_latin_1_file_keeps_its_pound_signs(tmp_path):
    lines = ["1,10001,GIFT FOR £5,1,12/1/10 8:26,1,7,Italy"]
    assert online_retail.read(csv(tmp_path, lines)).items.get_column("title").to_list() == ["GIFT FOR £5"]
    (tmp_path / "Online Retail.csv").write_text("\n".join([HEADER, *lines]), encoding="utf-8")
    assert online_retail.read(tmp_path).items.get_column("title").to_list() == ["GIFT FOR £5"]


def workbook(path, sheets):
    """A minimal .xlsx: numbers as numbers, times as Excel's serial days with a date style, the rest as inline text."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    rel = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"

    def cell(value):
        if value is None:
            return "<c/>"
        if isinstance(value, datetime):
            return f'<c s="1"><v>{(value - datetime(1899, 12, 30)).total_seconds() / 86_400!r}</v></c>'
        if isinstance(value, int | float):
            return f"<c><v>{value}</v></c>"
        return f'<c t="inlineStr"><is><t>{value}</t></is></c>'

    with zipfile.ZipFile(path, "w") as book:
        numbers = range(1, len(sheets) + 1)
        parts = "".join(
            f'<Override PartName="/xl/worksheets/sheet{n}.xml" '
            'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/>'
            for n in numbers
        )
        book.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
            'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
            'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/><Override '
            'PartName="/xl/styles.xml" ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.styles+xml"/>'
            f"{parts}</Types>",
        )
        book.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{rel}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
        )
        names = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in zip(numbers, sheets, strict=True))
        book.writestr("xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{rel}"><sheets>{names}</sheets></workbook>')
        links = "".join(f'<Relationship Id="r{n}" Type="{rel}/worksheet" Target="worksheets/sheet{n}.xml"/>' for n in numbers)
        styles = f'<Relationship Id="styles" Type="{rel}/styles" Target="styles.xml"/>'
        book.writestr(
            "xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{package}/relationships">{links}{styles}</Relationships>'
        )
        book.writestr(
            "xl/styles.xml",
            f'<styleSheet xmlns="{main}"><cellXfs count="2"><xf numFmtId="0"/><xf numFmtId="22"/></cellXfs></styleSheet>',
        )
        for n, rows in zip(numbers, sheets.values(), strict=True):
            body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
            book.writestr(f"xl/worksheets/sheet{n}.xml", f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>')
    return path


def test_the_published_workbook_is_read_sheet_by_sheet(tmp_path):
    header = ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"]
    workbook(
        tmp_path / "online_retail_II.xlsx",
        {
            "Year 2009-2010": [
                header,
                [489434, 85048, "15CM CHRISTMAS GLASS BALL", 12, datetime(2009, 12, 1, 7, 45), 6.95, 13085, "United Kingdom"],
                ["C489449", "79323P", "PINK CHERRY LIGHTS", -2, datetime(2009, 12, 2, 7, 46), 6.75, 13085, "United Kingdom"],
                [489435, 85048, "15CM CHRISTMAS GLASS BALL", 1, datetime(2010, 12, 5, 7, 45), 6.95, None, "United Kingdom"],
                [489436, 85048, "15CM CHRISTMAS GLASS BALL", 1, datetime(2010, 12, 5, 7, 45), 6.95, 13085, "United Kingdom"],
            ],
            "Year 2010-2011": [
                header,
                [536365, "85123A", "WHITE HANGING HEART", 6, datetime(2010, 12, 1, 8, 26), 2.55, 17850, "France"],
            ],
        },
    )
    dataset = importer_for(tmp_path)(tmp_path)
    assert dataset.events.select("user_id", "item_id", "type", "timestamp", "quantity", "basket_id").rows() == [
        ("13085", "85048", "purchase", 1259653500000, 12.0, "489434"),
        ("13085", "79323P", "cancellation", 1259739960000, 2.0, "C489449"),
        ("17850", "85123A", "purchase", 1291191960000, 6.0, "536365"),
    ]
    assert reasons(dataset) == {"overlap of two files": 2}


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path):
    path = csv(tmp_path, ["536365,85123A,HEART,12/1/10 8:26,2.5,17850,UK"], header=HEADER.replace("Quantity,", ""))
    with pytest.raises(
        DataError, match=r"column quantity is missing; the file has InvoiceNo, StockCode, Description, InvoiceDate"
    ):
        online_retail.read(path)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "online_retail.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"online_retail.parquet: damaged"):
        online_retail.read(tmp_path)
    (tmp_path / "online_retail.parquet").unlink()
    (tmp_path / "Online Retail.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"Online Retail.xlsx: damaged"):
        online_retail.read(tmp_path)


def test_the_real_two_years_come_out_with_every_row_accounted_for(shared_data):
    dataset = online_retail.read(shared_data("online-retail"))
    report, counts = dataset.cleaning, dataset.manifest.counts
    assert report.rows_read == 525_461 + 541_909 == report.rows_kept + report.dropped + report.merged
    assert reasons(dataset)["overlap of two files"] == 22_523
    assert (counts.events, counts.users, counts.items, counts.baskets) == (783_604, 5_875, 4_633, 43_876)
    assert counts.by_type == {"cancellation": 17_525, "purchase": 766_079}
    # the wholesaler with the longest history is a customer, not a robot
    assert dataset.events.filter(pl.col("user_id") == "17841").height > 12_000
    assert dataset.items.get_column("title").null_count() == 0
    assert "Unknown" not in dataset.items.get_column("title")
