"""The commands of `longwave-train` that measure: they write results, and the page of these."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model.console import console, one_line_errors, say, together, training_bar

Data = Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")]
Preset = Annotated[str, typer.Option(help="A preset by name, or a TOML file.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="As of `benchmark`.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never fetch.")]


def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER",
            help="ml-1m, ml-1m-timed, ml-100k, beauty, online-retail, online-retail-cold, eshop-clickstream, planted, turning, "
            "synthetic, synthetic-cold, synthetic-demo, or a folder that `prepare` wrote.",
        ),
    ],
    data: Data = None,
    preset: Preset = "small",
    seed: Annotated[
        int, typer.Option(min=0, max=2**32 - 1, help="Of weights, order of training and choice of validation queries.")
    ] = 0,
    model: Annotated[list[str] | None, typer.Option(help="longwave (default), sasrec or gru4rec; may be given again.")] = None,
    out: Annotated[Path, typer.Option(help="The folder of results: OUT/NAME-PRESET-SEED.json, and OUT/ledger.jsonl.")] = Path(
        "benchmarks"
    ),
    work: Annotated[Path, typer.Option(help="The folder of trained runs; a killed one goes on, a finished one is kept.")] = Path(
        "runs/benchmarks"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train anew what is named by --model.")] = False,
    offline: Offline = False,
) -> None:
    """Prepare, train, and measure on the test part beside the baselines; writes one result, whole or not at all."""
    with one_line_errors(), together():
        from model.assess import OURS
        from model.benchmark.run import Places
        from model.benchmark.run import benchmark as run

        places = Places(out, work, out / "ledger.jsonl", data)
        with training_bar() as report:
            path = run(
                name,
                preset,
                seed,
                places,
                model or [OURS],
                overwrite=overwrite,
                offline=offline,
                say=say,
                report=report,
            )
    console.print(f"-> {path}", soft_wrap=True)


def compare(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, also of neural baselines; others are held to the first.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write, too.")] = None,
    offline: Offline = False,
) -> None:
    """Hold runs, finished or not, against each other on the validation part alone: what an ablation is decided by."""
    with one_line_errors():
        from model.benchmark.names import find
        from model.compare import compare as run
        from model.compare import to_table, write_comparison

        called, dataset, _ = find(name, data, offline)
        compared = run(dataset, runs)
        if out:
            write_comparison(compared, called, dataset.manifest.fingerprint, out)
    console.print(to_table(compared))
    if out:
        console.print(f"-> {out}", soft_wrap=True)


def sweep(
    file: Annotated[Path, typer.Argument(help="A TOML file: a benchmark, a preset, a net, and what each run has otherwise.")],
    data: Data = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Train this run alone, and compare nothing; may be given again."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of results: OUT/FILE.json.")] = Path("benchmarks/ablations"),
    work: Annotated[
        Path, typer.Option(help="The folder of trained runs, WORK/FILE/RUN; a killed one goes on, a finished one is kept.")
    ] = Path("runs/sweeps"),
    offline: Offline = False,
) -> None:
    """Train all runs that a file asks for and hold them to the first on the validation part alone: a search, or an ablation."""
    with one_line_errors(), together():
        from model.benchmark.sweep import sweep as run
        from model.compare import to_table

        with training_bar() as report:
            compared = run(file, out, work, data, only or (), offline=offline, say=say, report=report)
    if compared:
        console.print(to_table(compared))
        console.print(f"-> {out / file.stem}.json", soft_wrap=True)


def speed(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`.")],
    data: Data = None,
    preset: Preset = "base",
    length: Annotated[list[int] | None, typer.Option(min=2, help="Events at once; may be given again. [200, 1000]")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each net that are timed.")] = 30,
    out: Annotated[Path, typer.Option(help="The folder of results: OUT/speed/NAME-PRESET.json.")] = Path("benchmarks"),
    offline: Offline = False,
) -> None:
    """Time training steps of ours and of the neural baselines, by turns, in both precisions."""
    with one_line_errors():
        from model.benchmark.speed import measure_speed

        path = measure_speed(
            name,
            preset,
            out,
            data,
            length or (200, 1000),
            steps,
            offline,
            say=say,
        )
    console.print(f"-> {path}", soft_wrap=True)


def compression(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not; the first one is what all are held to.")],
    data: Data = None,
    queries: Annotated[int, typer.Option(min=1, help="Validation questions to ask.")] = 1000,
    rounds: Annotated[int, typer.Option(min=4, help="How often each graph is timed.")] = 200,
    out: Annotated[Path, typer.Option(help="The folder of results: OUT/compression/NAME-RUN.json.")] = Path("benchmarks"),
    offline: Offline = False,
) -> None:
    """Export a run in every way, others beside it, and measure size, quality on validation, and speed of each."""
    with one_line_errors():
        from model.benchmark.compression import measure_compression

        path = measure_compression(
            name,
            runs,
            out,
            data,
            queries,
            rounds,
            offline,
            say=say,
        )
    console.print(f"-> {path}", soft_wrap=True)


def measure_update(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`; must have times.")],
    data: Data = None,
    preset: Preset = "small",
    seed: Seed = 0,
    part: Annotated[
        str, typer.Option(help="Whose questions are asked: valid, to choose settings by, or test, which is noted in the ledger.")
    ] = "valid",
    new: Annotated[float, typer.Option(help="The share of the events before the questions that is new.")] = 0.01,
    out: Annotated[
        Path, typer.Option(help="The folder of results: OUT/update/NAME-PRESET-PART-SEED.json, and OUT/ledger.jsonl.")
    ] = Path("benchmarks"),
    work: Annotated[Path, typer.Option(help="The folder of trained runs; a finished one of the same settings is kept.")] = Path(
        "runs/update"
    ),
    offline: Offline = False,
) -> None:
    """What an update on a few new events costs and is worth, beside the model before and a training from scratch."""
    with one_line_errors():
        from model.benchmark.update import measure_update as run

        with training_bar() as report:
            path = run(
                name,
                preset,
                seed,
                part,
                out,
                work,
                data,
                new,
                offline,
                say=say,
                report=report,
            )
    console.print(f"-> {path}", soft_wrap=True)


def measure_cold(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`; must have times.")],
    facet: Annotated[
        list[str] | None, typer.Option(help="platform, category, or an attribute of users such as country; may be given again.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Try instead what popularity in context adds to this run for users with few events.")
    ] = None,
    data: Data = None,
    out: Annotated[Path, typer.Option(help="The folder of results: OUT/context/NAME.json.")] = Path("benchmarks"),
    offline: Offline = False,
) -> None:
    """What it is worth to know where a new user is: popularity in their context beside popularity, at each user's first visit.

    Looks at nothing beyond the validation part.
    """
    with one_line_errors():
        from model.benchmark.blend import measure_blend, served, write_cold
        from model.benchmark.context import measure_context

        if run is None:
            path = measure_context(name, facet or [], out, data, offline, say=say)
        else:
            path = measure_blend(name, run, facet or [], out, data, offline=offline, say=say)
            if cold := write_cold(run, path):
                say(f"-> {cold}")
            elif served(facet or []):
                say("nothing is gained: the bundle gets no blend")
            else:
                say("no facet that a service knows: which blend the bundle gets is as before")
    console.print(f"-> {path}", soft_wrap=True)


def measure_platforms(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`; must have two platforms or more.")],
    data: Data = None,
    preset: Preset = "small",
    seed: Seed = 0,
    out: Annotated[
        Path, typer.Option(help="The folder of results: OUT/platforms/NAME-PRESET-SEED.json, and OUT/ledger.jsonl.")
    ] = Path("benchmarks"),
    work: Annotated[Path, typer.Option(help="The folder of trained runs; a killed one goes on, a finished one is kept.")] = Path(
        "runs/platforms"
    ),
    offline: Offline = False,
) -> None:
    """Whether to fine-tune for a platform: a general model, the same fine-tuned, and one trained there, on its test part."""
    with one_line_errors():
        from model.benchmark.platforms import measure_platforms as run

        with training_bar() as report:
            path = run(
                name,
                preset,
                seed,
                out,
                work,
                data,
                offline,
                say=say,
                report=report,
            )
    console.print(f"-> {path}", soft_wrap=True)


def report(
    results: Annotated[Path, typer.Option(help="The folder of results that `benchmark` wrote.")] = Path("benchmarks"),
    page: Annotated[Path, typer.Option(help="The page: what is between its two marks is replaced.")] = Path("docs/benchmarks.md"),
    figures: Annotated[Path, typer.Option(help="The folder of plots, beside the page.")] = Path("docs/figures"),
) -> None:
    """Turn all results of a folder into tables and plots of a page: means over seeds, errors and spread."""
    with one_line_errors():
        from model.benchmark.page import write_page

        written = write_page(results, page, figures)
    console.print(*(f"-> {path}" for path in written), sep="\n", soft_wrap=True)
