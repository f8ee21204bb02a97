from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile

import pytest
from typer.testing import CliRunner

from model.cli import app
from model.data import fetch
from model.data.dataset import read_dataset
from model.data.errors import DataError

runner = CliRunner()


def run(*words):
    return runner.invoke(app, ["prepare", *map(str, words)])


@pytest.fixture(autouse=True)
def nothing_at_hand(tmp_path, monkeypatch):
    """No data of this machine is found by chance."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    monkeypatch.delenv("LONGWAVE_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_synthetic_world_is_prepared_by_name(tmp_path):
    result = run("synthetic-tiny", "--out", tmp_path / "out", "--seed", 3)
    assert result.exit_code == 0
    assert "60 users over 80 items" in result.stdout
    assert read_dataset(tmp_path / "out").manifest.source.endswith("seed 3")


def test_a_table_is_prepared_by_path_and_columns(tmp_path):
    (tmp_path / "t.csv").write_text("u,i,t\nx,a,978300760\nx,,978300761\n")
    columns = ["--column", "user=u", "--column", "item=i", "--column", "time=t"]
    result = run(tmp_path / "t.csv", *columns, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "missing item (dropped)" in result.stdout
    assert read_dataset(tmp_path / "out").cleaning.rows_kept == 1


def test_a_seed_below_0_is_refused(tmp_path):
    result = run("synthetic-tiny", "--out", tmp_path / "out", "--seed", -1)
    assert result.exit_code == 2
    assert "--seed" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "neither a path nor a known data set; known are online-retail"),
        (["."], "not recognised"),
        (["ml-1m"], "ml-1m: no folder 'ml-1m' in LONGWAVE_DATA_DIR"),
        (["online-retail", "--offline"], "online-retail: no folder"),
        (["ml-1m", "--data", "missing"], "missing: not there (--data)"),
        (["ml-1m", "--column", "user=u"], "ml-1m: has known columns"),
        (["absent.csv", "--column", "user=u", "--column", "item=i"], "absent.csv: expected a .csv"),
    ],
)
def test_bad_input_is_one_line_with_exit_code_2_and_nothing_is_written(tmp_path, words, said):
    result = run(*words, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert said in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rows", ["", "x,,978300760\n,b,978300760\n"])
def test_where_no_event_is_left_the_cleaning_table_says_why(tmp_path, rows):
    (tmp_path / "t.csv").write_text("u,i,t\n" + rows)
    columns = ["--column", "user_id=u", "--column", "item_id=i", "--column", "timestamp=t"]
    result = run(tmp_path / "t.csv", *columns, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "missing item (dropped)" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith(f"error: t: no event is left of {rows.count(chr(10))};")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_refused_before_any_work(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    result = run("nowhere", "--out", tmp_path)
    assert "not a data set" in result.stderr
    assert result.exit_code == 2


def test_a_place_below_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "there").write_text("a file")
    result = run("nowhere", "--out", tmp_path / "there" / "out")
    assert result.exit_code == 2
    assert result.stderr.strip() == f"error: {tmp_path / 'there'}: a file, expected a folder"


def test_data_is_looked_for_where_it_is_said_to_be(tmp_path, monkeypatch):
    assert fetch.find_data("ml-1m") is None
    in_cache, shared, env, explicit = (
        tmp_path / "cache" / "longwave" / "data",
        tmp_path / "shared" / "data",  # ../shared/data of tmp_path/a, an ancestor of the current folder
        tmp_path / "env",
        tmp_path / "explicit",
    )
    for base in (in_cache, shared, env, explicit):  # from the last place to the first
        (base / "ml-1m").mkdir(parents=True)
        if base == env:
            monkeypatch.setenv("LONGWAVE_DATA_DIR", str(env))
        assert fetch.find_data("ml-1m", explicit if base == explicit else None) == base / "ml-1m"
    assert fetch.find_data("ml-1m", explicit / "ml-1m") == explicit / "ml-1m"


@pytest.fixture
def server():
    """Serves one zip archive; `asked` counts the requests."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("book.xlsx", b"rows")

    class Handler(http.server.BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Handler.asked += 1
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()
            self.wfile.write(archive.getvalue())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", hashlib.sha256(archive.getvalue()).hexdigest(), Handler
        serving.shutdown()
        thread.join()


def pinned(monkeypatch, url, sha256, member="book.xlsx"):
    monkeypatch.setitem(fetch.REMOTES, "online-retail", fetch.Remote(url, sha256, member, "CC BY 4.0"))


def test_a_fetched_file_is_kept_and_not_fetched_again(tmp_path, monkeypatch, server):
    url, sha256, handler = server
    pinned(monkeypatch, url + "/there", sha256)
    folder = fetch.fetch("online-retail")
    assert (folder / "book.xlsx").read_bytes() == b"rows"
    assert [entry.name for entry in folder.iterdir()] == ["book.xlsx"]
    assert fetch.fetch("online-retail") == folder == fetch.find_data("online-retail")
    assert handler.asked == 1


def test_content_of_another_checksum_is_refused_and_not_kept(tmp_path, monkeypatch, server):
    url, _, _ = server
    pinned(monkeypatch, url + "/there", "0" * 64)
    with pytest.raises(DataError, match=r"sha256 is [0-9a-f]{64}, expected 0{64}; nothing was kept"):
        fetch.fetch("online-retail", tmp_path / "c")
    assert list((tmp_path / "c" / "online-retail").iterdir()) == []


def test_an_archive_without_the_file_is_refused(tmp_path, monkeypatch, server):
    url, sha256, _ = server
    pinned(monkeypatch, url + "/there", sha256, member="other.xlsx")
    with pytest.raises(DataError, match=r"no other.xlsx in the archive"):
        fetch.fetch("online-retail", tmp_path / "c")


@pytest.mark.parametrize("path", ["/gone", None])
def test_a_failed_fetch_says_how_to_go_on_offline(tmp_path, monkeypatch, server, path):
    url, sha256, _ = server
    # port 9 (discard) of this machine: refused at once, as without a network
    pinned(monkeypatch, url + path if path else "http://127.0.0.1:9/x", sha256)
    with pytest.raises(DataError, match=r"cannot be fetched .* give a folder with --data or LONGWAVE_DATA_DIR"):
        fetch.fetch("online-retail", tmp_path / "c")


def test_data_without_a_public_licence_is_never_fetched():
    with pytest.raises(DataError, match="ml-1m: has no public licence"):
        fetch.fetch("ml-1m")
