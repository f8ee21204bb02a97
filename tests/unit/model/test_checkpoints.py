"""Runs on disk: damaged, unfinished, or of something else."""

import dataclasses
import os
import pickle
import shutil

import pytest
import torch
from tiny_run import TinyRun

from model.assess import load_run
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.data.dataset import write_dataset
from model.data.synthetic import synthetic_world
from model.files import OutputError
from model.loop import CHECKPOINT


@pytest.fixture
def file(tiny_run: TinyRun, tmp_path):
    return shutil.copy(tiny_run.run / CHECKPOINT, tmp_path / CHECKPOINT)


def test_a_checkpoint_comes_back_as_it_was_written(tiny_run: TinyRun, tmp_path):
    checkpoint = load_checkpoint(tiny_run.run / CHECKPOINT)
    save_checkpoint(checkpoint, tmp_path / "deeper" / "again.pt")
    again = load_checkpoint(tmp_path / "deeper" / "again.pt")
    assert not again.net.training
    assert again.net.config == checkpoint.net.config
    assert (again.settings, again.item_ids, again.data, again.names) == (
        checkpoint.settings,
        checkpoint.item_ids,
        checkpoint.data,
        checkpoint.names,
    )
    for name, tensor in checkpoint.net.state_dict().items():
        assert torch.equal(tensor, again.net.state_dict()[name])
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["again.pt"]


def test_a_checkpoint_for_which_the_disk_is_too_small_leaves_the_one_before_and_nothing_more(file, tiny_run: TinyRun):
    before = file.read_bytes()
    (file.parent / f".{CHECKPOINT}.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(OutputError, match=rf"^{file}: cannot be written: No space left on device$"):
        save_checkpoint(load_checkpoint(tiny_run.run / CHECKPOINT), file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [CHECKPOINT]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.pt: no such checkpoint"):
        load_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_checkpoint_that_was_cut_off_is_refused(file, share):
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(CheckpointError, match=rf"{file}: not a checkpoint"):
        load_checkpoint(file)


class Trap:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_code_in_a_checkpoint_is_never_run(file, capsys):
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(file)
    torch.save({"config": Trap()}, file)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load_checkpoint(file)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["config"].update(unheard_of=1),
        lambda content: content["config"].update(width=content["config"]["width"] * 2),
        lambda content: content.pop("weights"),
        lambda content: content.pop("names"),
        lambda content: content.update(unheard_of=1),
        lambda content: content["weights"].popitem(),
    ],
)
def test_a_checkpoint_of_another_version_is_refused(file, change):
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="another version"):
        load_checkpoint(file)


def test_a_run_that_has_not_finished_is_not_used(tiny_run: TinyRun, tmp_path):
    checkpoint = load_checkpoint(tiny_run.run / CHECKPOINT)
    save_checkpoint(dataclasses.replace(checkpoint, training={"epoch": 1}), tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="--resume"):
        load_run(tmp_path, tiny_run.data)


def test_a_run_is_not_used_with_other_data_than_its_own(tiny_run: TinyRun, tmp_path):
    other = synthetic_world("tiny", seed=1).dataset
    write_dataset(other, tmp_path)
    own = load_checkpoint(tiny_run.run / CHECKPOINT).data["fingerprint"]
    with pytest.raises(CheckpointError, match=f"{own[:12]}.*{other.manifest.fingerprint[:12]}"):
        load_run(tiny_run.run, tmp_path)
