from __future__ import annotations

import gzip
import zipfile

import polars as pl
import pytest

from model.data.clean import DAY_MS
from model.data.dataset import to_sequences
from model.data.errors import DataError
from model.data.importers import amazon, eshop, movielens, recbole, table
from model.data.importers.registry import importer_for
from model.data.schema import SYNTHETIC_ORIGIN_MS
from model.data.times import milliseconds


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.fixture
def ml_1m(tmp_path):
    write(tmp_path / "ratings.dat", "1::20::5::978300760\n1::10::3::978300760\n2::10::1::978300000\n")
    write(tmp_path / "movies.dat", "10::Misérables, Les: Part 2 (1995)::Drama|Musical\n20::Up (2009)::Animation\n", "latin-1")
    write(tmp_path / "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    return tmp_path


def test_movielens_1m_keeps_latin_1_titles_ties_and_user_attributes(ml_1m):
    dataset = importer_for(ml_1m)(ml_1m)
    assert dataset.manifest.name == "ml-1m"
    assert dataset.events.select("user_id", "item_id", "value").rows() == [("2", "10", 1.0), ("1", "20", 5.0), ("1", "10", 3.0)]
    assert dataset.items.rows()[0] == ("10", "Misérables, Les: Part 2 (1995)", ["Drama", "Musical"])
    assert dataset.users.rows() == [("1", "F", "under 18", "K-12 student"), ("2", "M", "56+", "self-employed")]


def test_a_missing_file_and_a_short_line_of_movielens_are_named(ml_1m):
    write(ml_1m / "movies.dat", "10::Les Misérables\n", "latin-1")
    with pytest.raises(DataError, match=r"movies.dat: line 1 has 2 fields, expected 3"):
        movielens.read(ml_1m)
    (ml_1m / "movies.dat").unlink()
    with pytest.raises(DataError, match=r"movies.dat is not there"):
        movielens.read(ml_1m)


def test_the_stable_sequences_are_ordered_by_pos_and_their_times_are_made_up(ml_1m):
    (ml_1m / "ratings.dat").unlink()
    rows = "user_id,pos,movie_id,rating,timestamp\n2,1,10,,\n2,0,20,,\n10,0,10,4,978300019\n10,1,20,5,978300019\n"
    (ml_1m / movielens.STABLE).write_bytes(gzip.compress(rows.encode()))
    dataset = movielens.read(ml_1m)
    own = dataset.events.filter(pl.col("user_id") == "2")
    assert own.select("item_id", "timestamp").rows() == [("20", SYNTHETIC_ORIGIN_MS), ("10", SYNTHETIC_ORIGIN_MS + 1000)]
    assert not dataset.manifest.timed
    timed = movielens.read(ml_1m, timed_users_only=True)
    assert timed.manifest.timed
    assert timed.events.select("user_id", "item_id", "timestamp").rows() == [
        ("10", "10", 978300019000),
        ("10", "20", 978300019000),
    ]


def test_every_user_of_the_real_ml_1m_is_in_the_order_of_pos(shared_data):
    folder = shared_data("ml-1m")
    sequences = to_sequences(movielens.read(folder))
    assert (sequences.users, sequences.items, len(sequences.item)) == (6_040, 3_416, 999_611)
    truth = pl.read_csv(folder / movielens.STABLE, columns=["user_id", "pos", "movie_id"]).sort(
        pl.col("user_id").cast(pl.String), "pos"
    )
    ids = pl.Series(sequences.item_ids).gather(sequences.item).cast(pl.Int64)
    assert ids.equals(truth.get_column("movie_id"), check_names=False)


def test_the_real_ml_100k_has_all_its_ratings_and_real_times(shared_data):
    dataset = movielens.read(shared_data("ml-100k"))
    counts = dataset.manifest.counts
    assert (counts.events, counts.users, counts.items) == (100_000, 943, 1_682)
    assert dataset.items.filter(pl.col("item_id") == "1").rows() == [
        ("1", "Toy Story (1995)", ["Animation", "Children's", "Comedy"])
    ]
    assert dataset.users.filter(pl.col("user_id") == "1").rows() == [("1", "M", "20-29", "technician")]
    assert (dataset.manifest.first_ms, dataset.manifest.timed) == (874_724_710_000, True)


def test_recboles_typed_headers_say_what_a_field_is(tmp_path):
    write(tmp_path / "shop.inter", "item_id:token\tuser_id:token\tbehavior:token\ttimestamp:float\n7\tu\tbuy\t978300760.0\n")
    write(tmp_path / "shop.item", "item_id:token\tmovie_title:token_seq\tclass:token_seq\timage:float_seq\tprice:float\n"
          "7\tToy Story\tComedy Drama\t0.5 1.5\t9.5\n8\tUp\t\t\t\n")  # fmt: skip
    write(tmp_path / "shop.user", "user_id:token\tgender:token\tage:float\nu\tF\t3\nv\tM\t4\n")
    dataset = importer_for(tmp_path)(tmp_path)
    assert dataset.events.select("user_id", "item_id", "type", "timestamp").rows() == [("u", "7", "buy", 978300760000)]
    assert dataset.items.rows() == [("7", "Toy Story", ["Comedy", "Drama"], 0.5, 1.5, 9.5), ("8", "Up", [], None, None, None)]
    assert dataset.manifest.item_features == ["feature_image_000", "feature_image_001", "feature_price"]
    assert dataset.users.rows() == [("u", "F")]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("user_id:token\titem_id", "header 'item_id' has no type"),
        ("user_id:token\tthing:token", "field 'item_id' is missing; the file has"),
    ],
)
def test_a_recbole_header_without_type_or_field_is_named(tmp_path, header, said):
    with pytest.raises(DataError, match=said):
        recbole.read(write(tmp_path / "x.inter", header + "\nu\ti\n"))


def test_recboles_copy_of_ml_100k_has_the_same_events_as_the_original(shared_data):
    folder = shared_data("ml-100k")
    ours, theirs = movielens.read(folder).events, recbole.read(folder).events
    columns = ["user_id", "item_id", "value", "timestamp"]
    assert ours.select(columns).sort(columns).equals(theirs.select(columns).sort(columns))


def test_amazon_beauty_has_its_titles_beside_it(shared_data):
    dataset = amazon.read(shared_data("amazon-s3rec"))
    counts = dataset.manifest.counts
    assert (counts.events, counts.users, counts.items) == (198_502, 22_363, 12_101)
    assert dataset.items.get_column("title").null_count() == 7  # empty in items.csv too
    first = to_sequences(dataset)
    start = first.offsets[first.user_ids.index("2")]
    assert [first.item_ids[i] for i in first.item[start : start + 6]] == ["6", "7", "8", "9", "10", "4"]


SHOP = (
    "who,what,when,kind,n,label,kinds\n7.0,a,2024-01-01T00:00:00Z,buy,1,Teapot,kitchen|blue\n7.0,b,2024-01-02 12:30,return,x,,\n"
)


def test_a_table_is_read_by_its_mapping(tmp_path):
    path = write(tmp_path / "shop.csv", SHOP)
    config = write(
        tmp_path / "shop.toml",
        '[columns]\nuser = "who"\nitem = "what"\ntime = "when"\ntype = "kind"\nquantity = "n"\ntitle = "wrong"\n'
        '[[event_types]]\nname = "return"\npolarity = "negative"\n[options]\nname = "my-shop"\nrepeats = true\n',
    )
    dataset = table.read(path, table.read_mapping(config, ["title=label", "category=kinds"]))
    assert dataset.events.select("user_id", "item_id", "type", "timestamp", "quantity").rows() == [
        ("7.0", "a", "buy", 1704067200000, 1.0),
        ("7.0", "b", "return", 1704198600000, None),
    ]
    assert dataset.items.rows() == [("a", "Teapot", ["blue", "kitchen"]), ("b", None, [])]
    assert [(t.name, t.polarity) for t in dataset.manifest.event_types] == [("return", "negative"), ("buy", "positive")]
    assert (dataset.manifest.name, dataset.manifest.repeats) == ("my-shop", True)


def test_a_table_in_parquet_may_have_whole_numbers_in_a_float_column(tmp_path):
    pl.DataFrame({"u": [17850.0, None], "i": [3, 4]}).write_parquet(tmp_path / "t.parquet")
    dataset = table.read(tmp_path / "t.parquet", table.read_mapping(None, ["user=u", "item=i"]))
    assert dataset.events.select("user_id", "item_id", "timestamp").rows() == [("17850", "3", SYNTHETIC_ORIGIN_MS)]
    assert not dataset.manifest.timed


def test_rows_of_a_table_with_an_endless_number_are_counted_as_impossible_amounts(tmp_path):
    rows = ["u,i,1,3", "u,j,inf,2", "u,k,1,1e39", "u,l,,-inf", "u,m,,nan"]
    (tmp_path / "t.csv").write_text("user,item,quantity,value\n" + "".join(row + "\n" for row in rows))
    dataset = table.read(
        tmp_path / "t.csv", table.read_mapping(None, ["user=user", "item=item", "quantity=quantity", "value=value"])
    )
    assert {reason.name: reason.rows for reason in dataset.cleaning.reasons if reason.rows} == {"impossible amount": 3}
    assert dataset.events.select("item_id", "quantity", "value").rows() == [("i", 1.0, 3.0), ("m", None, None)]


def test_a_missing_column_of_a_table_is_one_error_with_the_columns_that_exist(tmp_path):
    path = write(tmp_path / "shop.csv", SHOP)
    with pytest.raises(DataError, match=r"column 'customer' \(for user\) is missing; the file has who, what, when, kind"):
        table.read(path, table.read_mapping(None, ["user=customer", "item=what"]))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["user"], "expected key=column"),
        (["user=a", "colour=b"], "'colour' is unknown; the keys are user, item"),
        (["user=a", "item=b", "user=c"], "user is given twice, as 'a' and as 'c'"),
        (["user=a", "item=b", "user_id=c"], "user is given twice, as 'a' and as 'c'"),
        (["user=a"], "at least the columns user, and item or text"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(columns, said):
    with pytest.raises(DataError, match=said):
        table.read_mapping(None, columns)


def test_the_names_of_the_services_fields_are_keys_too(tmp_path):
    config = write(tmp_path / "m.toml", '[columns]\nuser_id="a"\ntime="t"\n')
    mapping = table.read_mapping(config, ["item_id=b", "timestamp=when", "session_id=s", "basket_id=o"])
    assert mapping.columns == {"user": "a", "item": "b", "time": "when", "session": "s", "basket": "o"}
    with pytest.raises(DataError, match=r"time is given twice"):
        table.read_mapping(write(tmp_path / "m.toml", '[columns]\nuser="a"\nitem="b"\ntime="t"\ntimestamp="u"\n'), [])


def test_a_damaged_csv_is_one_line_without_advice_on_the_readers_own_options(tmp_path):
    path = write(tmp_path / "t.csv", 'u,i\nx,a\ny,b,c,d\nz,"\n')
    with pytest.raises(DataError, match=r"t.csv: damaged, not csv: ") as error:
        table.read(path, table.read_mapping(None, ["user=u", "item=i"]))
    assert len(str(error.value).splitlines()) == 1


def test_ids_that_the_service_refuses_do_not_come_out_of_any_importer(tmp_path, ml_1m):
    long = "x" * 257
    mapping = table.read_mapping(None, ["user=u", "item=i", "type=k"])
    rows = f'u,i,k\nx,a,buy\nx,"a\nb",buy\n{long},a,buy\nx,a,{long}\n'
    atomic = f"user_id:token\titem_id:token\nx\ta\nx\t{long}\n"
    with (ml_1m / "ratings.dat").open("a") as ratings:
        ratings.write(f"{long}::20::5::978300760\n")
    for dataset in (
        table.read(write(tmp_path / "t.csv", rows), mapping),
        recbole.read(write(tmp_path / "t.inter", atomic)),
        amazon.read(write(tmp_path / amazon.SEQUENCES, f"x a {long}\n")),
        movielens.read(ml_1m),
    ):
        report = dataset.cleaning
        found = {reason.name: reason.rows for reason in report.reasons}
        assert found["id the service does not take"] == (3 if dataset.manifest.name == "t" and report.rows_read == 4 else 1)
        assert report.rows_read == report.rows_kept + report.dropped + report.merged
        assert long not in dataset.events.select(pl.concat_list("user_id", "item_id", "type").explode()).to_series()


def test_a_mapping_file_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"m.toml: options.colour: Extra inputs"):
        table.read_mapping(write(tmp_path / "m.toml", '[columns]\nuser="a"\nitem="b"\n[options]\ncolour="red"\n'), [])
    with pytest.raises(DataError, match=r"m.toml: cannot be read as TOML"):
        table.read_mapping(write(tmp_path / "m.toml", "[columns"), [])
    with pytest.raises(DataError, match=r"m.toml: columns"):
        table.read_mapping(write(tmp_path / "m.toml", "columns = 3"), [])


@pytest.mark.parametrize(
    "cells",
    [
        [978300760],
        [978300760.0],
        [978300760000],
        ["978300760"],
        ["2000-12-31T22:12:40Z"],
        ["2000-12-31 23:12:40+01:00"],
        ["2000-12-31 22:12:40"],
        ["2000-12-31T22:12:40.000"],
        [978300760000000],
    ],
)
def test_every_spelling_of_a_moment_is_the_same_moment(cells):
    assert milliseconds(pl.Series(cells)).to_list() == [978300760000]


def test_what_is_no_time_becomes_missing_and_a_day_is_its_midnight():
    assert milliseconds(pl.Series(["soon", "2000-12-31", None])).to_list() == [None, 978220800000, None]


ESHOP = """year;month;day;order;country;session ID;page 1 (main category);page 2 (clothing model);colour;location;price;page
2008;4;1;1;29;1;1;A13;1;5;28;1
2008;4;1;2;29;1;2;B4;1;6;33;1
2008;4;1;1;9;2;4;P1;1;6;33;1
2008;4;2;1;29;3;2;A13;1;6;33;1
2008;4;2;2;29;3;1;A13;1;6;33;1
2008;4;2;3;29;3;;A13;1;6;33;1
"""


@pytest.mark.parametrize("packed", [False, True])
def test_the_clothing_shop_is_read_with_sessions_as_users_in_the_order_of_the_day(tmp_path, packed):
    if packed:
        with zipfile.ZipFile(tmp_path / "online-shopping.zip", "w") as archive:
            archive.writestr("e-shop 2008.csv", ESHOP)
    else:
        write(tmp_path / "e-shop 2008.csv", ESHOP)
    dataset = eshop.read(tmp_path)
    events = dataset.events
    assert events["user_id"].to_list() == ["1", "1", "2", "3", "3", "3"]
    assert events["item_id"].to_list() == ["A13", "B4", "P1", "A13", "A13", "A13"]
    assert (events["timestamp"].diff().drop_nulls() > 0).all()
    assert [time // DAY_MS for time in events["timestamp"]] == [13970] * 3 + [13971] * 3
    assert dict(dataset.users.iter_rows()) == {"1": "29", "2": "9", "3": "29"}
    categories = dict(dataset.items.select("item_id", "categories").iter_rows())
    assert categories == {"A13": ["trousers"], "B4": ["skirts"], "P1": ["sale"]}


def test_another_file_is_not_the_clothing_shop(tmp_path):
    with pytest.raises(DataError, match="no clickstream"):
        eshop.read(tmp_path)
    with pytest.raises(DataError, match="'order' is missing"):
        eshop.read(write(tmp_path / "shop.csv", "year;month;day\n2008;4;1\n"))
    with pytest.raises(DataError, match="damaged"):
        eshop.read(write(tmp_path / "shop.zip", "no archive"))
