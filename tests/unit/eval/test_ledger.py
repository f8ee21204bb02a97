"""The ledger of looks at test parts: nothing is lost, also beside others and after a crash."""

import json
import threading

import pytest
from typer.testing import CliRunner

from model.cli import app
from model.ledger import LedgerError, append, default_ledger, read_ledger


def test_a_line_is_one_object_and_comes_after_what_is_there(tmp_path):
    path = tmp_path / "new" / "ledger.jsonl"
    append(path, {"n": 1, "word": "é\u2028"})  # which ends a line for some, but no line here
    append(path, {"n": 2})
    assert path.read_text(encoding="utf-8") == '{"n": 1, "word": "é\u2028"}\n{"n": 2}\n'
    assert read_ledger(path) == [{"n": 1, "word": "é\u2028"}, {"n": 2}]


def test_after_a_line_that_was_cut_off_the_next_one_is_whole(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"n": 1}\n{"n": 2, "da')
    append(path, {"n": 3})
    assert read_ledger(path) == [{"n": 1}, {"n": 3}]
    assert path.read_text() == '{"n": 1}\n{"n": 2, "da\n{"n": 3}\n'


def test_many_at_once_lose_no_line(tmp_path):
    path = tmp_path / "ledger.jsonl"
    threads = [
        threading.Thread(target=lambda who=who: [append(path, {"who": who, "n": n, "fill": "x" * 500}) for n in range(20)])
        for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {(entry["who"], entry["n"]) for entry in read_ledger(path)}
    assert found == {(who, n) for who in range(4) for n in range(20)}


def test_by_default_it_lies_with_the_users_own_state(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_ledger() == tmp_path / "longwave" / "ledger.jsonl"


def test_a_ledger_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match=r"file.ledger\.jsonl: the ledger cannot be written"):
        append(tmp_path / "file" / "ledger.jsonl", {})


def test_evaluate_notes_its_look(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    words = ["evaluate", str(tiny_run.run), "--data", str(tiny_run.data), "--out", str(tmp_path / "report"), "--limit", "5"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, [*words, "--ledger", str(tmp_path / "mine.jsonl")]).exit_code == 0
    (entry,) = read_ledger(default_ledger())
    assert read_ledger(tmp_path / "mine.jsonl")[0]["metrics"] == entry["metrics"]
    assert (entry["command"], entry["part"], entry["queries"], entry["run"]) == ("evaluate", "test", 5, str(tiny_run.run))
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert entry["fingerprint"] == report["fingerprint"]
    assert entry["metrics"]["longwave"]["ndcg@20"] == pytest.approx(
        report["models"]["longwave"]["metrics"]["ndcg@20"]["mean"], abs=1e-6
    )


def test_a_look_at_one_platform_or_at_rounded_numbers_says_so(tiny_run, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    words = ["evaluate", tiny_run.run, "--data", tiny_run.data, "--out", tmp_path / "report", "--limit", 5, "--ledger", ledger]
    words += ["--platform", "web", "--item-vectors", "int8"]
    assert CliRunner().invoke(app, [str(word) for word in words]).exit_code == 0
    (entry,) = read_ledger(ledger)
    assert entry["run"] == f"{tiny_run.run}, platform web"
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["models"]["longwave"]["settings"] == {"platform": "web", "item_vectors": "int8"}


def test_a_home_that_cannot_be_written_does_not_stop_a_look_but_a_ledger_that_was_named_does(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    words = ["evaluate", str(tiny_run.run), "--data", str(tiny_run.data), "--out", str(tmp_path / "report"), "--limit", "5"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0
    assert "not noted" in result.stderr
    result = CliRunner().invoke(app, [*words, "--ledger", str(tmp_path / "file" / "x")])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
