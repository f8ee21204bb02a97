"""The demo empties its own folder and no other."""

from __future__ import annotations

import json
import os

import pytest

from app.demo.errors import DemoError
from app.demo.folder import MARKER, open_folder


def test_a_folder_with_files_that_no_demo_made_is_refused_and_left_alone(tmp_path):
    (tmp_path / "redis").mkdir()
    (tmp_path / "redis" / "theirs").write_text("precious")
    with pytest.raises(DemoError, match="holds files that no demo made"), open_folder(tmp_path):
        pass
    assert (tmp_path / "redis" / "theirs").read_text() == "precious"


def test_a_fresh_demo_starts_without_the_users_and_results_of_the_last_one(tmp_path):
    with open_folder(tmp_path / "demo") as folder:
        for path in (folder.redis, folder.rehearsal, folder.bundles, folder.report, folder.run):
            path.mkdir()
    with open_folder(tmp_path / "demo") as folder:
        assert sorted(path.name for path in folder.root.iterdir()) == [MARKER, "run"]


def test_a_link_is_taken_away_and_not_what_it_points_at(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "file").write_text("precious")
    with open_folder(tmp_path / "demo") as folder:
        folder.redis.symlink_to(tmp_path / "theirs")
    with open_folder(tmp_path / "demo") as folder:
        assert not folder.redis.exists()
    assert (tmp_path / "theirs" / "file").read_text() == "precious"


def test_two_demos_do_not_share_a_folder(tmp_path):
    with open_folder(tmp_path / "demo") as folder:
        folder.redis.mkdir()
        with pytest.raises(DemoError, match=f"in use by another demo, process {os.getpid()}"), open_folder(tmp_path / "demo"):
            pass
        assert folder.redis.exists()


def test_a_run_is_used_again_only_on_the_data_and_configuration_that_it_was_finished_on(tmp_path):
    with open_folder(tmp_path / "demo") as folder:
        folder.data.mkdir()
        folder.run.mkdir()
        (folder.data / "manifest.json").write_text(json.dumps({"fingerprint": "one"}))
        assert not folder.is_trained("demo")
        folder.note_training("demo")
        assert folder.is_trained("demo")
        assert not folder.is_trained("small")
        (folder.data / "manifest.json").write_text(json.dumps({"fingerprint": "two"}))
        assert not folder.is_trained("demo")


def test_a_training_that_began_and_did_not_finish_is_not_used(tmp_path):
    with open_folder(tmp_path / "demo") as folder:
        folder.data.mkdir()
        folder.run.mkdir()
        (folder.data / "manifest.json").write_text(json.dumps({"fingerprint": "one"}))
        folder.note_training("demo")
        folder.forget_training()
        folder.run.mkdir()  # what an interrupted training leaves
        assert not folder.is_trained("demo")
