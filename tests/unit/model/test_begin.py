"""Training that begins with a bundle's weights, and learns to answer on one platform."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
import torch
from tiny_run import tiny_settings
from typer.testing import CliRunner

from model.assess import load_run
from model.begin import begun
from model.checkpoint import load_checkpoint, save_checkpoint
from model.cli import app
from model.data.build import with_events
from model.data.dataset import read_dataset, write_dataset
from model.loop import CHECKPOINT
from model.nets import Longwave
from model.predict import read_out
from model.settings import ConfigError
from model.task import load_task, make_task
from model.train import Trainer
from model.update.origin import OriginError, read_origin


def settings_of(tiny_run, **data):
    settings = tiny_settings(tiny_run.encoder)
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, **data))


def test_the_same_data_begin_with_the_very_answers_of_the_bundle(tiny_run, trained_bundle):
    origin = read_origin(trained_bundle)
    task = load_task(tiny_run.data, settings_of(tiny_run).data)
    first, second = (
        read_out(net.eval(), task.inputs, task.seq, task.split.valid) for net in (origin.checkpoint.net, begun(origin, task))
    )
    torch.testing.assert_close(first.readout, second.readout, rtol=0, atol=0)
    torch.testing.assert_close(first.item_matrix, second.item_matrix, rtol=0, atol=0)


def test_items_are_found_by_id_and_unknown_ones_begin_like_unseen_ones(tiny_run, trained_bundle):
    origin = read_origin(trained_bundle)
    dataset = read_dataset(tiny_run.data)
    known = origin.checkpoint.item_ids
    gone, renamed = known[0], known[1]
    events = dataset.events.filter((dataset.events["item_id"] != gone).fill_null(True))
    events = events.with_columns(events["item_id"].replace({renamed: "zz-new"}))
    items = dataset.items.filter(dataset.items["item_id"] != gone)
    items = items.with_columns(items["item_id"].replace({renamed: "zz-new"}))
    task = make_task(with_events(dataset, events, items), settings_of(tiny_run).data)
    net, before = begun(origin, task), origin.checkpoint.net
    assert gone not in task.seq.item_ids
    for row, item in enumerate(task.seq.item_ids):
        vector = before.item.no_id if item == "zz-new" else before.item.id.weight[known.index(item)]
        assert torch.equal(net.item.id.weight[row], vector)
    assert "zz-new" in task.seq.item_ids


def test_other_event_types_are_refused_by_name(tiny_run, trained_bundle):
    dataset = read_dataset(tiny_run.data)
    types = dataset.manifest.event_types
    types = [*types, types[0].model_copy(update={"name": "zap"})]
    manifest = dataset.manifest.model_copy(update={"event_types": types})
    task = make_task(dataclasses.replace(dataset, manifest=manifest), settings_of(tiny_run).data)
    with pytest.raises(OriginError, match=r"event_types.*zap"):
        begun(read_origin(trained_bundle), task)


@pytest.mark.parametrize(("field", "value"), [("polarity", "positive"), ("weight", 7.0)])
def test_events_that_count_otherwise_are_refused(tiny_run, trained_bundle, field, value):
    # The memory would go on with the bundle's weights, and popularity and the manifest with the data's.
    dataset = read_dataset(tiny_run.data)
    types = [t.model_copy(update={field: value}) if t.name == "view" else t for t in dataset.manifest.event_types]
    assert types != dataset.manifest.event_types
    manifest = dataset.manifest.model_copy(update={"event_types": types})
    task = make_task(dataclasses.replace(dataset, manifest=manifest), settings_of(tiny_run).data)
    with pytest.raises(OriginError, match=f"its {field} are"):
        begun(read_origin(trained_bundle), task)


def test_other_item_features_are_refused_by_name(tiny_run, trained_bundle):
    dataset = read_dataset(tiny_run.data)
    items = dataset.items.with_columns(pl.lit(1.0).cast(pl.Float32).alias("feature_weight"))
    task = make_task(with_events(dataset, dataset.events, items), settings_of(tiny_run).data)
    origin = read_origin(trained_bundle)
    with pytest.raises(OriginError, match="its item features are"):  # not even as many
        begun(origin, task)
    net = Longwave(dataclasses.replace(origin.checkpoint.net.config, feature_width=1))
    of_colour = dataclasses.replace(
        origin, checkpoint=dataclasses.replace(origin.checkpoint, net=net), features=("feature_colour",)
    )
    with pytest.raises(OriginError, match=r"feature_colour.*feature_weight"):
        begun(of_colour, task)
    assert begun(dataclasses.replace(of_colour, features=("feature_weight",)), task).config.feature_width == 1


@pytest.mark.parametrize("key", ["negatives", "mask_seen", "unseen_items", "content_weight"])
def test_settings_that_the_bundles_shape_does_not_go_with_are_refused(tiny_run, trained_bundle, tmp_path, key):
    origin = read_origin(trained_bundle)
    assert origin.checkpoint.net.config.interests > 1
    settings = settings_of(tiny_run)
    value = {"negatives": 20, "mask_seen": True}.get(key, 0.5)
    # Of one interest, as the configuration has it: but the shape is the bundle's.
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, **{key: value}), model={})
    task = load_task(tiny_run.data, settings.data, origin.checkpoint.item_text.numpy())
    with pytest.raises(ConfigError, match=rf"train\.{key} must be"):
        Trainer(task, settings, tmp_path, origin)


def test_a_platform_where_nothing_is_asked_is_one_line(tiny_run, tmp_path):
    dataset = read_dataset(tiny_run.data)
    late = dataset.events.get_column("timestamp").quantile(0.8)
    moved = pl.when(pl.col("timestamp") > late).then(pl.lit("app")).otherwise("platform").alias("platform")
    write_dataset(with_events(dataset, dataset.events.with_columns(moved)), tmp_path / "data")
    shutil.copytree(tiny_run.run, tmp_path / "run")
    checkpoint = load_checkpoint(tiny_run.run / CHECKPOINT)
    data = checkpoint.data | {"fingerprint": read_dataset(tmp_path / "data").manifest.fingerprint}
    save_checkpoint(dataclasses.replace(checkpoint, data=data), tmp_path / "run" / CHECKPOINT)
    words = ["evaluate", tmp_path / "run", "--data", tmp_path / "data", "--platform", "web", "--out", tmp_path / "report"]
    said = CliRunner().invoke(app, [str(word) for word in words])
    assert (said.exit_code, len(said.stderr.splitlines())) == (2, 1), said.output
    assert "asks nothing on the platform 'web'" in said.stderr
    assert not (tmp_path / "report").exists()


def test_one_platform_is_asked_and_every_event_is_read(tiny_run):
    whole = load_task(tiny_run.data, settings_of(tiny_run).data)
    web = load_task(tiny_run.data, settings_of(tiny_run, platform="web").data)
    assert len(web.seq.item) == len(whole.seq.item)
    row = web.seq.platforms.index("web") + 1
    for part in ("valid", "test"):
        every, chosen = getattr(whole.split, part), getattr(web.split, part)
        on_web = every.position[whole.seq.platform[every.position] == row]
        assert 0 < len(chosen) < len(every)
        assert np.array_equal(chosen.position, on_web)
    assert (web.seq.platform[web.train_queries.position] == row).all()
    with pytest.raises(ConfigError, match=r"platform must be one of .*web.*, got 'fax'"):
        load_task(tiny_run.data, settings_of(tiny_run, platform="fax").data)


def test_the_command_fine_tunes_and_evaluate_asks_per_platform(tiny_run, trained_bundle, tmp_path):
    config = tmp_path / "mine.toml"
    config.write_text(
        f'[data]\ntext_encoder = "{tiny_run.encoder}"\n[train]\nepochs = 1\nleast_steps = 0\nlanes = 16\nchunk = 32\n'
        "threads = 1\nlearning_rate = 1e-5\ndirect_learning_rate = 1e-5\nwarmup_steps = 0\n[model]\nwidth = 64\n"
    )
    run = tmp_path / "run"

    def call(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    words = ["train", tiny_run.data, "--out", run, "--config", config, "--init-from", trained_bundle, "--platform", "web"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    checkpoint = load_checkpoint(run / CHECKPOINT)
    assert checkpoint.settings["init_from"] == trained_bundle.name
    assert checkpoint.settings["data"]["platform"] == "web"
    before = read_origin(trained_bundle).checkpoint.net
    assert checkpoint.net.config.width == before.config.width  # the shape is the bundle's, whatever the configuration says
    moved = (checkpoint.net.item.id.weight - before.item.id.weight).abs().max()
    assert 0 < moved < 0.01  # a step of training away from the bundle, and nowhere near a new beginning
    # A run that began elsewhere is another run.
    assert "other" in call(*words[:-4], "--platform", "web", "--resume").output
    _, app_task = load_run(run, tiny_run.data, "app")
    assert app_task.seq.platforms.index("app") + 1 == set(app_task.seq.platform[app_task.split.test.position].tolist()).pop()
    said = call("evaluate", run, "--data", tiny_run.data, "--platform", "fax", "--out", tmp_path / "report")
    assert said.exit_code == 2
    assert "fax" in said.output
    assert not (tmp_path / "report").exists()


def test_a_text_encoder_of_the_same_width_is_told_from_another_one_by_what_it_makes_of_titles(tiny_run, trained_bundle):
    origin, settings = read_origin(trained_bundle), settings_of(tiny_run)
    task = load_task(tiny_run.data, settings.data, origin.checkpoint.item_text.numpy())
    elsewhere = "where the same encoder has been copied to"
    begun(origin, task, elsewhere)
    other = dataclasses.replace(task, item_text=np.roll(task.item_text, 1, axis=1))
    with pytest.raises(OriginError, match=r"its texts were read by .*encoder', and 'mine' makes other vectors"):
        begun(origin, other, "mine")
    # A few titles that have changed since, as after an update, are no other encoder.
    renamed = dataclasses.replace(origin, titles=["?", *origin.titles[1:5], *origin.titles[:1], *origin.titles[6:]])
    begun(renamed, task, elsewhere)
    strangers = dataclasses.replace(origin, titles=[f"x {title}" for title in origin.titles])
    begun(strangers, task, str(tiny_run.encoder))
    with pytest.raises(OriginError, match="'mine' makes"):
        begun(strangers, task, "mine")


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        (["--platform", "web"], "report-web"),
        (["--item-vectors", "int8"], "report-item-vectors=int8"),
        (["--platform", "web", "--item-vectors", "int8", "--weights", "int8"], "report-web-item-vectors=int8-weights=int8"),
    ],
)
def test_a_report_of_something_else_leaves_the_general_one_alone(tiny_run, tmp_path, options, folder):
    run = shutil.copytree(tiny_run.run, tmp_path / "run")
    (run / "report").mkdir()
    (run / "report" / "report.json").write_text("the general one")
    words = ["evaluate", run, "--data", tiny_run.data, *options, "--limit", 5]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert (run / "report" / "report.json").read_text() == "the general one"
    assert json.loads((run / folder / "report.json").read_text())
