"""Numbers of items on any scale: a price or a year teaches as much as it would between 0 and 1, and is served as it is."""

import dataclasses

import numpy as np
import polars as pl
import pytest
import torch
from tiny_run import MODEL, TRAIN

from model.begin import begun
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.data.build import with_events
from model.data.dataset import read_dataset, write_dataset
from model.data.dense import number_scales
from model.data.synthetic import synthetic_world
from model.loop import CHECKPOINT
from model.nets import Longwave, ModelConfig
from model.nets.numbers import FARTHEST, NumberScales
from model.publish import publish
from model.settings import Settings
from model.task import make_task
from model.train import Trainer
from model.update.origin import read_origin

SETTINGS = Settings(train=dataclasses.replace(TRAIN, epochs=2), model=MODEL)


def priced(factor):
    """A world whose items have a price and a year, times a factor; one in five has no year."""
    dataset = synthetic_world("tiny").dataset
    rng, count = np.random.default_rng(0), dataset.items.height
    year = np.where(rng.random(count) < 0.2, np.nan, rng.integers(1990, 2024, count))
    columns = {"feature_price": rng.choice([5.0, 20.0, 99.0, 499.0], count), "feature_year": year}
    items = dataset.items.with_columns(pl.Series(name, values * factor) for name, values in columns.items())
    return with_events(dataset, dataset.events, items)


def trainer(dataset, folder, settings=SETTINGS):
    return Trainer(make_task(dataset, settings.data), settings, folder)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """`data`, a finished `run` and `bundles` of the world with prices as they are."""
    folder = tmp_path_factory.mktemp("shop")
    write_dataset(priced(1.0), folder / "data")
    trainer(read_dataset(folder / "data"), folder / "run").run()
    publish(folder / "run", folder / "data", folder / "bundles", weights="int8")
    return folder


def scales(*values):
    ((mean, scale),) = number_scales(pl.DataFrame({"feature_a": values}, schema={"feature_a": pl.Float32()}), ["feature_a"])
    return mean, scale


def test_a_number_is_measured_by_the_items_that_have_it():
    years = [1990.0, 2000.0, 2010.0] * 100
    mean, scale = scales(*years, *[None] * 100)
    assert mean == pytest.approx(2000)
    assert scale == pytest.approx(1 / np.std(years))


def test_one_absurd_item_does_not_make_all_others_equal():
    assert scales(*range(100), 1e9) == pytest.approx(scales(*range(100)), rel=0.05)


@pytest.mark.parametrize("without", [None, 0.0])
def test_a_flag_that_few_items_have_is_still_one(without):
    mean, scale = scales(1.0, *[without] * 999)
    assert (1 - mean) * scale > FARTHEST
    assert abs(mean * scale) < 0.1


@pytest.mark.parametrize("values", [[7.0] * 10, [0.1], [None, None], [0.0, None]])
def test_a_column_that_is_the_same_for_all_says_nothing(values):
    assert scales(*values) == (0, 0)
    assert NumberScales([(0, 0)])(torch.tensor([[3e38], [-3e38], [0.0]])).tolist() == [[0], [0], [0]]


def test_numbers_are_scaled_and_cut_off_and_vectors_behind_them_are_not():
    given = torch.tensor([[12.0, 100.0, 3e38], [-3e38, 3e38, 0.5]])
    scaled = NumberScales([(10.0, 2.0), (100.0, 1e-38)])(given)
    torch.testing.assert_close(scaled, torch.tensor([[4.0, 0.0, 3e38], [-FARTHEST, 3.0, 0.5]]))


def test_differences_at_the_ends_of_float32_leave_numbers():
    for values in ([1e-45, 2e-45, 3e-45], [3e38, -3e38, 3e38, -3e38]):
        assert NumberScales([scales(*values)])(torch.tensor(values)[:, None]).isfinite().all()


def test_a_model_learns_as_much_from_raw_numbers_as_from_small_ones(shop, tmp_path):
    raw = load_checkpoint(shop / "run" / CHECKPOINT).history
    small = trainer(priced(1 / 2048), tmp_path).run().history
    for name in ("loss", "valid_ndcg"):
        assert [epoch[name] for epoch in raw] == pytest.approx([epoch[name] for epoch in small], rel=0.01)


def test_the_bundle_takes_numbers_as_they_are_and_has_their_scales(shop):
    # With rounded weights, of which the scales are none; and with raw numbers in the vectors that prove it.
    origin = read_origin(shop / "bundles" / "current")
    with np.load(origin.folder / "golden.npz") as golden:
        price, year = golden["item/in/features"].T
        vectors = golden["item/out/vector"]
    assert origin.features == ("feature_price", "feature_year")
    assert (abs(year - 2007) < 10).all()
    assert (abs(price - 160) < 200).all()
    assert (np.ptp(vectors, 0) > 0).any()
    with torch.no_grad():
        unseen, _ = origin.checkpoint.net.item.unseen(None, torch.tensor(np.stack([price, year], 1)))
    np.testing.assert_allclose(unseen.numpy(), vectors, atol=1e-5)


def test_what_goes_on_with_a_bundle_has_its_scales(shop):
    origin = read_origin(shop / "bundles" / "current")
    dearer = make_task(priced(3.0), SETTINGS.data)
    known = origin.checkpoint.net.config.feature_scales
    assert dearer.model_config(SETTINGS).feature_scales != known
    assert begun(origin, dearer).config.feature_scales == known


def test_a_model_of_before_reads_numbers_as_they_are(shop, tmp_path):
    checkpoint = load_checkpoint(shop / "run" / CHECKPOINT)
    config = dataclasses.asdict(checkpoint.net.config)
    del config["feature_scales"]
    net = Longwave(ModelConfig(**config))
    net.load_state_dict(checkpoint.net.state_dict())
    features = torch.tensor([[99.0, 2000.0]])
    torch.testing.assert_close(net.item.content(None, features), net.item.features(features), rtol=0, atol=0)
    # But half of a training by numbers as they are is not gone on with by others.
    save_checkpoint(dataclasses.replace(checkpoint, net=net, training={"epoch": 1}), tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="read numbers of items as they are"):
        trainer(read_dataset(shop / "data"), tmp_path).resume()
