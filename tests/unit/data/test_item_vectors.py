"""Vectors of items (of an image, a sound): lists in a column, as long for every item, or an error that says where not."""

import base64
import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from model.cli import app
from model.data.build import with_events
from model.data.dataset import read_dataset, write_dataset
from model.data.dense import dense_matrix
from model.data.errors import DataError
from model.data.importers.archive import _vectors
from model.data.importers.items import read_items, with_items
from model.data.synthetic import synthetic_world

EVENTS = "user,item,when\n" + "".join(f"u{n % 3},{'abc'[n % 3]},2020-01-0{1 + n}T00:00:00Z\n" for n in range(9))


@pytest.fixture(scope="module")
def world():
    return synthetic_world("tiny").dataset


def with_column(dataset, cells, name="vector_image"):
    column = pl.Series(name, [*cells, *[None] * (dataset.items.height - len(cells))], dtype=pl.List(pl.Float64))
    return with_events(dataset, dataset.events, dataset.items.with_columns(column))


def test_vectors_are_written_and_read_again_with_their_length_in_the_manifest(world, tmp_path):
    dataset = with_column(world, [[0.5, 1.0, 2.0], None, [1.0, 1.0, 1.0]])
    write_dataset(dataset, tmp_path / "data")
    again = read_dataset(tmp_path / "data")
    assert again.manifest.item_vectors == {"image": 3}
    assert again.items["vector_image"].head(3).to_list() == [[0.5, 1.0, 2.0], None, [1.0, 1.0, 1.0]]
    assert again.manifest.fingerprint == dataset.manifest.fingerprint != world.manifest.fingerprint


def test_a_model_reads_features_first_then_vectors_and_zeros_where_there_is_nothing():
    items = pl.DataFrame(
        {
            "feature_a": [1.0, None],
            "vector_image": pl.Series([[2.0, 3.0], None], dtype=pl.List(pl.Float32)),
            "vector_sound": pl.Series([None, [4.0]], dtype=pl.List(pl.Float32)),
        }
    )
    assert dense_matrix(items, ["feature_a"], {"image": 2, "sound": 1}).tolist() == [[1, 2, 3, 0], [0, 0, 0, 4]]
    assert dense_matrix(items, [], {"sound": 1}).tolist() == [[0], [4]]
    assert dense_matrix(items, [], {}) is None


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([[1.0, 2.0], None, [1.0]], r"column 'vector_image', row 3 \(item 'p00002'\): has 1 numbers; the first one has 2"),
        ([None, [1.0, float("nan")]], r"row 2 \(item 'p00001'\): a number is missing or not finite"),
        ([[1.0], [1e39]], r"row 2 \(item 'p00001'\): a number is missing or not finite"),
        ([None, [1.0, None]], r"row 2 \(item 'p00001'\): a number is missing or not finite"),
        ([[]], "has vectors of 0 numbers"),
        ([[1.0] * 4097], "has vectors of 4097 numbers"),
    ],
)
def test_a_vector_that_is_not_like_the_others_is_named(world, cells, words):
    with pytest.raises(DataError, match=words):
        with_column(world, cells)


def test_a_column_without_any_vector_is_left_out(world):
    assert with_column(world, [None]).manifest.item_vectors == {}


def test_a_column_of_something_else_or_one_too_many_is_refused(world):
    with pytest.raises(DataError, match=r"column 'vector_image' is String, expected lists of numbers"):
        with_events(world, world.events, world.items.with_columns(pl.lit("x").alias("vector_image")))
    nine = [pl.lit([1.0]).alias(f"vector_{n}") for n in range(9)]
    with pytest.raises(DataError, match="has 9 columns"):
        with_events(world, world.events, world.items.with_columns(nine))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
def test_a_table_of_items_beside_the_events_may_be_of_any_kind(tmp_path, kind):
    rows = [
        {"item_id": "a", "title": "A", "categories": ["x", "y"], "feature_w": 1.5, "vector_image": [0.5, 1.0], "other": "?"},
        {"item_id": "b", "title": None, "categories": [], "feature_w": None, "vector_image": None, "other": "?"},
        {"item_id": "unsold", "title": "U", "categories": None, "feature_w": 2.0, "vector_image": [1.0, 2.0], "other": "?"},
    ]
    file = tmp_path / f"items.{kind}"
    if kind == "parquet":
        pl.DataFrame(rows).write_parquet(file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        flat = [
            row | {"categories": "|".join(row["categories"] or []), "vector_image": json.dumps(row["vector_image"] or "")[1:-1]}
            for row in rows
        ]
        pl.DataFrame(flat).write_csv(file, separator="," if kind == "csv" else "\t")
    (tmp_path / "shop.csv").write_text(EVENTS)
    words = ["prepare", str(tmp_path / "shop.csv"), "--out", str(tmp_path / "data"), "--items", str(file)]
    done = CliRunner().invoke(app, [*words, "--column", "user=user", "--column", "item=item", "--column", "time=when"])
    assert done.exit_code == 0, done.output
    items = {row.pop("item_id"): row for row in read_dataset(tmp_path / "data").items.to_dicts()}
    assert items == {
        "a": {"title": "A", "categories": ["x", "y"], "feature_w": 1.5, "vector_image": [0.5, 1.0]},
        "b": {"title": None, "categories": [], "feature_w": None, "vector_image": None},
        "c": {"title": None, "categories": [], "feature_w": None, "vector_image": None},
    }


def test_what_the_table_does_not_say_stays_as_the_source_had_it(world):
    first, second = world.items["item_id"].head(2)
    given = pl.DataFrame({"item_id": [first], "title": ["Other"], "vector_image": pl.Series([[1.0]], dtype=pl.List(pl.Float32))})
    items = with_items(world, given).items
    before = world.items.filter(pl.col("item_id") == second)["title"][0]
    assert items.filter(pl.col("item_id") == first)["title"][0] == "Other"
    assert items.filter(pl.col("item_id") == second)["title"][0] == before
    assert items.height == world.items.height


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("item_id,vector_image\na,1 2\nb,1 x\n", r"column 'vector_image', row 2 \(item 'b'\): a number is missing"),
        ("item_id,vector_image\na,1 2\nb,1 2 3\n", r"column 'vector_image', row 2 \(item 'b'\): has 3 numbers"),
        ("item_id,feature_w\na,1\nb,much\n", r"column 'feature_w', row 2: 'much' is no Float32"),
        ("item_id,feature_w\na,1\nb,-inf\n", r"column 'feature_w', row 2 \(item 'b'\): '-inf' is not finite"),
        ("item_id,feature_w\na,1\nb,1e39\n", r"column 'feature_w', row 2"),
        ("item_id,title\na,A\na,B\n", r"column 'item_id', row 2: 'a' is there a second time"),
        ("item_id,title\na,A\n,B\n", r"column 'item_id', row 2: None is empty"),
        ("item_id,image\na,1\n", r"needs the column item_id and one of"),
    ],
)
def test_a_table_of_items_that_cannot_be_used_is_refused_with_file_column_and_row(tmp_path, text, words):
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(DataError, match=rf"items\.csv: {words}"):
        read_items(tmp_path / "items.csv")
    with pytest.raises(DataError, match="expected a file of items"):
        read_items(tmp_path / "nothing.csv")


def test_of_what_a_service_stored_the_length_that_most_items_have_counts_and_the_rest_is_noted():
    def packed(*numbers):
        return base64.b64encode(np.array(numbers, "<f4").tobytes()).decode()

    (column,), notes = _vectors([{"image": packed(1, 2)}, {}, {"image": packed(3)}, {"image": packed(4, 5)}])
    assert (column.name, column.to_list()) == ("vector_image", [[1, 2], None, None, [4, 5]])
    assert notes == ["1 items have a vector 'image' of other than 2 numbers, which is left out"]


def test_of_more_names_than_a_data_set_takes_those_count_that_most_items_have():
    cell = base64.b64encode(np.array([1], "<f4").tobytes()).decode()
    said = [{f"v{n}": cell for n in range(8)}] * 2 + [{"a": cell, "x" * 129: cell}, {"x" * 129: cell}]
    columns, notes = _vectors(said)
    assert [column.name for column in columns] == [f"vector_v{n}" for n in range(8)]
    assert columns[0].to_list() == [[1], [1], None, None]
    assert notes == [
        "the vectors 'a' of 1 items are left out: at most 8 are taken",
        f"the vectors {'x' * 129!r} of 2 items are left out: a name has at most 128 characters",
    ]


@pytest.mark.parametrize("name", ["vector_", "vector_" + "x" * 129])
def test_a_name_of_vectors_that_no_bundle_takes_is_refused_before_anything_is_trained(world, name):
    with pytest.raises(DataError, match="its name has 1 to 128 characters behind vector_"):
        with_column(world, [[1.0]], name)
