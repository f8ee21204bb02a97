"""Results as tables and plots of the page."""

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.benchmark.page import BEGIN, END, everything, replaced, section
from model.benchmark.page_words import p_words
from model.benchmark.results import ResultError, read_results
from model.cli import app
from model.data.splits import next_basket
from model.evaluate import baseline_lists, evaluate
from model.report import plain

ROOT = Path(__file__).parents[3]
PAGE = f"# Ours\n\nbefore\n\n{BEGIN}\nobsolete\n{END}\n\nafter\n"


@pytest.fixture(scope="module")
def report():
    from random_world import random_world

    seq = random_world(7, users=60)
    split = next_basket(seq, 0.7, 0.4)
    lists, settings, _ = baseline_lists(seq, split)
    lists = {"longwave": lists.pop("own frequency")} | lists
    return plain(dataclasses.asdict(evaluate(seq, split, lists, ours="longwave", settings=settings, resamples=50)))


@pytest.fixture
def folder(report, tmp_path):
    """Results of seeds 1 and 0 of one benchmark, whose ndcg@20 of our own differ by 0.02, and the page."""
    (tmp_path / "results").mkdir()
    (tmp_path / "page.md").write_text(PAGE)
    for seed in (1, 0):
        write(tmp_path, report, seed)
    return tmp_path


def write(folder, report, seed, training=None, **changes):
    own = json.loads(json.dumps(report))
    own["models"]["longwave"]["metrics"]["ndcg@20"] |= {"mean": 0.5 + 0.02 * seed, "standard_error": 0.004}
    own["comparisons"]["popularity"]["ndcg@20"] |= {"ratio": 2.0 + seed, "p": 0.03 * (1 + seed)}
    trained = {"parameters": 12345, "seconds": 60.0 * (1 + seed), "epochs": 4 + seed} | (training or {})
    result = {
        "format": 1,
        "name": "shop",
        "preset": "small",
        "seed": seed,
        "date": "2026-01-01T00:00:00Z",
        "commit": {"id": "abcdef0123456789", "dirty": False},
        "machine": {"cpu": "A Processor", "threads": 1, "cores": 2, "torch": "2"},
        "data": {"fingerprint": "f" * 64},
        "protocols": {"basket": {"report": own, "trained": {"longwave": trained}}},
    }
    (folder / "results" / f"{seed}.json").write_text(json.dumps(result | changes))


def _changed(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


OWN = ["protocols", "basket", "report", "models", "longwave"]


def _hurt(file, path, value):
    result = json.loads(file.read_text())
    *outer, last = path
    at = result
    for name in outer:
        at = at[name]
    at[last] = value
    file.write_text(json.dumps(result))


def run(folder):
    words = ["report", "--results", folder / "results", "--page", folder / "page.md", "--figures", folder / "figures"]
    return CliRunner().invoke(app, list(map(str, words)))


def test_means_errors_spread_and_comparisons_are_over_the_seeds(folder):
    assert run(folder).exit_code == 0
    text = (folder / "page.md").read_text()
    assert text.startswith("# Ours\n\nbefore\n\n" + BEGIN)
    assert text.endswith(END + "\n\nafter\n")
    assert "obsolete" not in text
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    rows = {row[0].strip("*"): row for row in cells}
    ours, popular, head = rows["longwave"], rows["popularity"], rows["model"]
    assert ours[head.index("ndcg@20")] == "0.5100 ± 0.0040"
    assert ours[head.index("spread of ndcg@20")] == f"{0.02 / 2**0.5:.4f}"
    assert popular[head.index("times")] == "2.50x, p 0.06"  # the largest p
    assert ours[-2:] == ["12,345", "1.5 min, 4 to 5 epochs"]
    assert popular[-2:] == ["–", "–"]
    assert "Seeds 0, 1; A Processor, 1 of 2 cores, torch 2; commit abcdef0123" in text
    assert {len(row) for row in cells} == {len(head)}
    (figure,) = (folder / "figures").iterdir()
    assert f"(figures/{figure.name})" in text
    assert figure.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_net_that_was_trained_elsewhere_says_where(folder, report):
    card = {"cpu": "A Processor", "gpu": "A Card", "threads": 1, "cores": 2, "torch": "2"}
    write(folder, report, 0, {"machine": card})
    (folder / "results" / "1.json").unlink()
    (comparison,) = read_results(folder / "results")
    said = "A Processor, 1 of 2 cores, torch 2; longwave trained on A Card, A Processor, 1 of 2 cores, torch 2; commit"
    assert said in section([comparison], "figures", [])


def test_a_net_that_was_trained_at_another_commit_than_it_was_asked_at_says_both(folder, report):
    early = {"id": "0123456789abcdef", "dirty": True}
    write(folder, report, 0, {"commit": early})
    write(folder, report, 1, {"commit": {"id": "abcdef0123456789", "dirty": False}})
    (comparison,) = read_results(folder / "results")
    assert "commit abcdef0123 (trained at 0123456789 with changes)." in section([comparison], "figures", [])


def test_cold_users_of_seeds_that_drew_others_are_from_the_least_to_the_most(folder):
    (comparison,) = read_results(folder / "results")
    figures = {"models": {"longwave": {"ndcg@20": {"mean": 0.1, "standard_error": 0.01}}}}
    for users, part in zip((1_200, 900), comparison.parts, strict=True):
        part["cold_users"] = {"queries": 2_000, "users": users, "after": {"3": figures}}
    text = section([comparison], "figures", [])
    assert "2,000 of these queries, of 900 to 1,200 users, each" in text
    assert "every column, others with every seed.\n" in text
    comparison.parts.pop()
    assert "every column.\n" in section([dataclasses.replace(comparison, results=comparison.results[:1])], "figures", [])


def test_a_single_seed_has_no_spread(folder):
    (folder / "results" / "1.json").unlink()
    (comparison,) = read_results(folder / "results")
    assert comparison.spread("longwave", "ndcg@20") is None
    assert "Seed 0;" in section([comparison], "figures", [])


def test_what_is_compared_with_nothing_has_no_ratio(folder):
    """Of those who have never got a label, or an item, right, no multiple can be said: JSON has null."""
    difference = {"ratio": None, "p": 0.5}
    interests = {"labels": 3, "queries": 9, "net": {"f1@3": {"mean": 0.1}}, "recent": {"f1@3": {"mean": 0.0}}}
    endurance = {"users": 2, "whole": 0.1, "last": 0.0, "norm_early": 1.0, "norm_late": 1.0, "difference": difference}
    (comparison,) = read_results(folder / "results")
    comparison.parts[0] |= {
        "interests": {"longwave": interests | {"difference": {"f1@3": difference}}},
        "endurance": {"longwave": endurance},
    }
    assert section([comparison], "figures", []).count("(–, p 0.50)") == 2


def test_a_model_that_some_seeds_lack_says_which_have_it(folder, report):
    some = json.loads(json.dumps(report))
    some["models"]["sasrec"] = some["models"]["recent popularity"]
    write(folder, some, 2)
    (comparison,) = read_results(folder / "results")
    text = section([comparison], "figures", [])
    assert "| sasrec (seed 2) |" in text
    assert "| popularity |" in text


def test_seeds_that_compare_another_model_with_the_others_are_no_mean(folder, report):
    other = json.loads(json.dumps(report))
    write(folder, other | {"ours": "sasrec"}, 2)
    with pytest.raises(
        ResultError, match=r"2\.json: compares sasrec with the others, where another seed of shop-small has longwave there"
    ):
        read_results(folder / "results")


def test_results_of_other_data_are_never_averaged_with_these(folder, report):
    write(folder, report, 2, data={"fingerprint": "e" * 64})
    assert [comparison.seeds for comparison in read_results(folder / "results")] == [[2], [0, 1]]


def test_an_opponent_that_is_not_well_trained_does_not_count(folder, report):
    weak = json.loads(json.dumps(report))
    weak["protocol"] = "loo"
    weak["models"]["sasrec"] = weak["models"]["popularity"]
    for seed, name in enumerate(("ml-1m", "beauty")):
        write(folder, report, seed, name=name, protocols={"loo": {"report": weak, "trained": {}}})
    beauty, ml_1m = read_results(folder / "results")
    for figure, said in ((0.1799, True), (0.18, False)):
        weak["models"]["sasrec"]["metrics"]["ndcg@10"]["mean"] = figure
        for comparison in (beauty, ml_1m):
            comparison.parts[0]["report"] = weak
            assert ("sasrec (below 0.180: does not count)" in section([comparison], "f", [])) == (said and comparison is ml_1m)


def test_a_net_that_has_learned_less_than_what_is_popular_does_not_count(folder, report):
    weak = json.loads(json.dumps(report))
    weak["models"]["sasrec"] = json.loads(json.dumps(weak["models"]["recent popularity"]))
    write(folder, weak, 0)
    for change, said in ((-0.01, True), (0.01, False)):
        weak["models"]["sasrec"]["metrics"]["ndcg@20"]["mean"] += change
        write(folder, weak, 0)
        (folder / "results" / "1.json").unlink(missing_ok=True)
        assert ("sasrec (below recent popularity: does not count)" in section(read_results(folder / "results"), "f", [])) == said


def test_writing_again_changes_nothing(folder):
    run(folder)
    once = (folder / "page.md").read_text()
    run(folder)
    assert (folder / "page.md").read_text() == once


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "results" / "0.json").write_text("{"), "0.json: not a result of"),
        (lambda folder: (folder / "results" / "0.json").write_text('{"format": 7}'), "0.json: a result of format 7"),
        (lambda folder: (folder / "results" / "0.json").write_text('{"format": 1}'), "0.json: not a whole result"),
        (lambda folder: _changed(folder / "results" / "0.json", data={}), "0.json: not a whole result: 'data.fingerprint'"),
        *(
            (lambda folder, path=path, value=value: _hurt(folder / "results" / "0.json", path, value), f"0.json: {said}")
            for path, value, said in (
                (["protocols"], [], "not a whole result: protocols: "),
                (["protocols", "basket"], None, "not a whole result: protocols.basket: "),
                (["protocols", "basket"], {"trained": {}}, "not a whole result: 'protocols.basket.report' is missing"),
                (["protocols", "baskets"], {}, "not a whole result: protocols.baskets"),
                (["machine"], None, "not a whole result: machine: "),
                (["commit"], None, "not a whole result: commit: "),
                (["commit"], {"id": "abc"}, "not a whole result: 'commit.dirty' is missing"),
                (["seed"], "0", "not a whole result: seed: "),
                ([*OWN, "metrics"], {}, "not a whole result: protocols.basket.report.models.longwave.metrics: "),
                (
                    [*OWN, "metrics"],
                    {"recall@20": {"mean": 0.1}},
                    "not a whole result: '" + ".".join(OWN) + ".metrics.ndcg@20' is",
                ),
                ([*OWN, "metrics", "ndcg@20", "mean"], "0.1", "not a whole result: " + ".".join(OWN) + ".metrics.ndcg@20.mean: "),
                ([*OWN, "by_history"], {}, "not a whole result: '" + ".".join(OWN) + ".by_history."),
                (["protocols", "basket", "trained", "longwave"], {}, "not a whole result: 'protocols.basket.trained.longwave."),
            )
        ),
        (lambda folder: [path.unlink() for path in (folder / "results").iterdir()], "no results there"),
        (lambda folder: (folder / "page.md").write_text("# Mine\n"), "page.md: must have the lines"),
        (lambda folder: (folder / "page.md").unlink(), "page.md: cannot be read"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_the_page_stays(folder, change, said):
    change(folder)
    before = (folder / "page.md").read_text() if (folder / "page.md").exists() else None
    result = run(folder)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert said in result.stderr
    assert ((folder / "page.md").read_text() if before else None) == before


def test_the_page_of_this_repository_says_what_its_results_say():
    page = ROOT / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    assert replaced(text, everything(ROOT / "benchmarks", "figures"), page) == text, "run `longwave-train report`"
    for line in text.splitlines():
        if line.startswith("!["):
            assert (page.parent / line.rpartition("(")[2].rstrip(")")).is_file(), line


ABLATION = re.compile(r"\(\.\./(benchmarks/ablations/[^)]+\.json)\)")
FIGURE = re.compile(r"(?<!\d)\.\d{4}(?!\d)")


def ablation_problems(text):
    """What is written by hand of ablations, and is not in the results that are named beside it.

    A table with a column `run` is about what the paragraph before it links to, and each of its rows about one run. In a
    paragraph any run of a linked result will do.
    """
    blocks = text.split("\n\n")
    for before, block in pairwise(blocks):
        table = block.startswith("| run |")
        linked = ABLATION.findall(before if table else block)
        runs = {run["run"]: run for path in linked for run in json.loads((ROOT / path).read_text())["runs"]}
        known = {short(run["ndcg"]["mean"], 4) for run in runs.values()}
        if linked:
            yield from (f"{figure}: of no run of {linked}" for figure in FIGURE.findall(block) if figure not in known)
        if table:
            head, _, *lines = ([cell.strip(" *") for cell in line.strip("|").split("|")] for line in block.splitlines())
            for line in lines:
                yield from row_problems(dict(zip(head, line, strict=True)), runs)


def row_problems(row, runs):
    name = row["run"].strip("`")
    if name not in runs:
        yield f"no run {name} in the results that are named beside it"
        return
    run, against = runs[name], runs[name]["against"]
    times = "" if against is None else f"{short(against['ratio'], 2)}x, p {p_words(against['p'])}".replace("p 0.", "p .")
    said = {"epochs": f"{run['epochs']} (best {run['best_epoch']})"}
    said |= {column: short(run["ndcg"]["mean"], 4) for column in row if column.startswith("ndcg@")}
    said |= {column: times for column in row if column.startswith("against ")}
    for column in said.keys() & row.keys():
        if row[column].partition(";")[0] != said[column]:
            yield f"{name}, {column}: {row[column]!r} on the page, {said[column]!r} in the result"


def short(value, digits):
    """As a figure is written by hand: .2253."""
    return f"{value:.{digits}f}".removeprefix("0")


@pytest.fixture
def tried():
    return (ROOT / "docs" / "ablations.md").read_text(encoding="utf-8")


def test_what_is_written_of_ablations_is_what_the_results_beside_it_have(tried):
    assert tried.count("| run |") > 8
    assert list(ablation_problems(tried)) == []
    results = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").partition(END)[2]
    assert ABLATION.findall(results)
    assert list(ablation_problems(results)) == []


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        (".2194", ".2195"),
        ("16 (best 16)", "16 (best 15)"),
        (".98x, p < .01", ".98x, p .01"),
        (".1939", ".1938"),
        (".2578", ".2576"),
        ("`offsets`", "`offset`"),
    ],
)
def test_a_figure_of_an_ablation_that_is_changed_is_seen(was, becomes, tried):
    assert was in tried
    assert list(ablation_problems(tried.replace(was, becomes, 1)))
