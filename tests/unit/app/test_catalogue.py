import numpy as np
import pytest

from app.catalogue import catalogue as module
from app.catalogue.catalogue import Catalogue, item_key
from app.errors import BundleError
from model.data.sequences import item_key as trainer_item_key


def make(ids):
    return Catalogue(ids, [None] * len(ids), [()] * len(ids), np.zeros((len(ids), 2), np.float32), np.zeros(len(ids), np.float32))


@pytest.mark.parametrize("item_id", ["", "a", "85123A", "é", "x" * 256])
def test_service_and_trainer_give_an_item_the_same_key(item_id):
    assert item_key(item_id) == trainer_item_key(item_id) != 0


def test_keys_of_any_shape_find_their_rows():
    catalogue = make([f"i{row}" for row in range(100)])
    rows = np.random.default_rng(0).integers(0, 100, (3, 7))
    assert (catalogue.rows_of_keys(catalogue.keys[rows]) == rows).all()


def test_unknown_and_empty_keys_have_no_row():
    catalogue = make(["a", "b"])
    # The largest key lies behind every known one, where a search without a bound would point past the end.
    keys = np.asarray([[0, item_key("c"), np.iinfo(np.int64).max, np.iinfo(np.int64).min, item_key("a")]])
    assert catalogue.rows_of_keys(keys).tolist() == [[-1, -1, -1, -1, 0]]


def test_two_items_with_one_id_are_refused():
    with pytest.raises(BundleError, match="'a' appears twice"):
        make(["a", "b", "a"])


def test_two_ids_with_one_key_are_refused(monkeypatch):
    monkeypatch.setattr(module, "item_key", lambda item_id: len(item_id))
    with pytest.raises(BundleError, match="'ab' and 'cd' have the same 64-bit key"):
        make(["a", "ab", "cd"])


def test_an_unknown_item_has_neither_row_nor_title():
    catalogue = make(["a"])
    assert (catalogue.row("b"), catalogue.title("b"), catalogue.title(None)) == (None, None, None)
