"""`longwave-train`: the offline half on the command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from model.errors import TrainerError

if TYPE_CHECKING:
    from model.distributed import Group
    from model.loop import Progress

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Prepare data, train, evaluate and export a model for Longwave."
)
console = Console()
errors = Console(stderr=True)

BAD_INPUT = 2


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def prepare(
    what: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="online-retail, ml-100k, ml-1m, synthetic-demo ..., or a path.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; an older data set there is replaced.")],
    data: Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="For a table: key=column, for instance user=customer_id.")] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="For a table: a TOML file with the tables columns, event_types and options.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of a synthetic world.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
) -> None:
    """Import and clean a data set, report what was dropped and why, and write the canonical folder."""
    from model.data.errors import NoEventsError
    from model.data.prepare import prepare as run

    with _one_line_errors():
        try:
            dataset = run(what, out, data, column, mapping, seed, offline)
        except NoEventsError as error:
            errors.print(error.cleaning.table())
            raise
    console.print(dataset.cleaning.table())
    counts = dataset.manifest.counts
    console.print(
        f"{dataset.manifest.name}: {counts.events:,} events of {counts.users:,} users over {counts.items:,} items, "
        f"{counts.baskets:,} baskets, fingerprint {dataset.manifest.fingerprint[:12]} -> {out}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="A folder that `prepare` wrote.")],
    out: Annotated[Path, typer.Option(help="The folder of the run: checkpoint, TensorBoard log.")],
    config: Annotated[str, typer.Option(help="A preset by name, or a TOML file.")] = "small",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an unfinished run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where the folder holds a run already.")] = False,
    init_from: Annotated[
        Path | None, typer.Option(help="A bundle, its checkpoint beside it: begin with its weights, in its shape.")
    ] = None,
    platform: Annotated[str, typer.Option(help="Learn to answer on this platform alone; all that users did is read.")] = "",
) -> None:
    """Train a model on a prepared data set; a killed run goes on with --resume.

    `torchrun --nproc-per-node 2 -m model.cli train ...` trains it with two processes.
    """
    with _one_line_errors(), _together() as group:
        from model.loop import check_free, remove_run
        from model.settings import load_settings
        from model.task import load_task
        from model.train import Trainer
        from model.update.origin import read_origin

        settings = load_settings(config)
        if platform:
            settings = replace(settings, data=replace(settings.data, platform=platform))
        check_free(out, resume, overwrite)
        origin = None if init_from is None else read_origin(init_from)
        trainer = Trainer(load_task(data, settings.data), settings, out, origin)
        group.wait()
        if overwrite and group.first:
            remove_run(out)
        group.wait()
        if resume and trainer.resume():
            console.print(f"going on after epoch {trainer.epoch}")
        if trainer.finished is not None:
            console.print(f"already finished after {len(trainer.finished.history)} epochs -> {out}", soft_wrap=True)
            return
        with _training_bar() as report:
            checkpoint = trainer.run(report)
    best = max((epoch["valid_ndcg"] for epoch in checkpoint.history), default=float("nan"))
    console.print(
        f"{len(checkpoint.history)} epochs, best validation ndcg@{trainer.task.split.k} {best:.4f} -> {out}", soft_wrap=True
    )


@app.command()
def teach(
    data: Annotated[Path, typer.Argument(help="A folder that `prepare` wrote.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, also of neural baselines, finished or not: the teachers.")],
    out: Annotated[Path, typer.Option(help="The folder to write, for the setting train.teacher.")],
    top: Annotated[int, typer.Option(help="How many items of each answer are kept.")] = 100,
    temperature: Annotated[float, typer.Option(help="What the teachers' scores are divided by.")] = 1.0,
) -> None:
    """Ask trained models every training question and keep the best of their mean answers, for a student to learn from."""
    with _one_line_errors():
        from model.teach import teach as run

        run(data, runs, out, top, temperature, say=_say)
    console.print(f"-> {out}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `train` wrote.")],
    data: Annotated[Path, typer.Option(help="The prepared data set that the run was trained on.")],
    out: Annotated[Path | None, typer.Option(help="Where the report goes; default: `report` in the run's folder.")] = None,
    limit: Annotated[int, typer.Option(help="Ask only the first so many test queries; 0 asks all.")] = 0,
    platform: Annotated[str, typer.Option(help="Ask only what was answered on this platform.")] = "",
    ledger: Annotated[
        Path | None,
        typer.Option(help="Where this look at the test part is noted; default: longwave/ledger.jsonl in $XDG_STATE_HOME."),
    ] = None,
    item_vectors: Annotated[str, typer.Option(help="As what the bundle stores item vectors: float32 or int8.")] = "float32",
    weights: Annotated[str, typer.Option(help="As what the bundle stores weights: float32 or int8.")] = "float32",
) -> None:
    """Measure a trained model on its test part, the baselines beside it; writes report.md, report.json and plots."""
    with _one_line_errors():
        from model.assess import assess
        from model.ledger import LedgerError, check_ledger, default_ledger, note
        from model.report import to_markdown, write_report

        noted = ledger or default_ledger()
        try:
            check_ledger(noted)
        except LedgerError as error:
            if ledger:
                raise
            # Nobody asked for it: a home that cannot be written to is no reason to measure nothing.
            errors.print(f"not noted: {error}", markup=False, highlight=False, soft_wrap=True)
        report = assess(run, data, limit, platform, item_vectors, weights)
        if noted.exists():
            note(noted, "evaluate", report, str(run))
        folder = out or run / "report"
        write_report(report, folder)
    console.print(to_markdown(report), markup=False, highlight=False, soft_wrap=True)
    console.print(f"-> {folder}", soft_wrap=True)


@app.command()
def benchmark(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FOLDER",
            help="ml-1m, ml-1m-timed, ml-100k, beauty, online-retail, synthetic, these two with -cold, planted, or a folder.",
        ),
    ],
    data: Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")] = None,
    preset: Annotated[str, typer.Option(help="A preset by name, or a TOML file.")] = "small",
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
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
) -> None:
    """Prepare, train, and measure on the test part beside the baselines; writes one result, whole or not at all."""
    with _one_line_errors(), _together():
        from model.assess import OURS
        from model.benchmark.run import Places
        from model.benchmark.run import benchmark as run

        places = Places(out, work, out / "ledger.jsonl", data)
        with _training_bar() as report:
            path = run(
                name,
                preset,
                seed,
                places,
                model or [OURS],
                overwrite=overwrite,
                offline=offline,
                say=_say,
                report=report,
            )
    console.print(f"-> {path}", soft_wrap=True)


@app.command()
def compare(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, also of neural baselines; others are held to the first.")],
    data: Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file to write, too.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
) -> None:
    """Hold runs, finished or not, against each other on the validation part alone: what an ablation is decided by."""
    with _one_line_errors():
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


@app.command()
def speed(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`.")],
    data: Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")] = None,
    preset: Annotated[str, typer.Option(help="A preset by name, or a TOML file.")] = "base",
    length: Annotated[list[int] | None, typer.Option(min=2, help="Events at once; may be given again. [200, 1000]")] = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps of each net that are timed.")] = 30,
    out: Annotated[Path, typer.Option(help="The folder of results: OUT/speed/NAME-PRESET.json.")] = Path("benchmarks"),
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
) -> None:
    """Time training steps of ours and of the neural baselines, by turns, in both precisions."""
    with _one_line_errors():
        from model.benchmark.speed import measure_speed

        path = measure_speed(
            name,
            preset,
            out,
            data,
            length or (200, 1000),
            steps,
            offline,
            say=_say,
        )
    console.print(f"-> {path}", soft_wrap=True)


@app.command()
def compression(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`.")],
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not; the first one is what all are held to.")],
    data: Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")] = None,
    queries: Annotated[int, typer.Option(min=1, help="Validation questions to ask.")] = 1000,
    rounds: Annotated[int, typer.Option(min=4, help="How often each graph is timed.")] = 200,
    out: Annotated[Path, typer.Option(help="The folder of results: OUT/compression/NAME-RUN.json.")] = Path("benchmarks"),
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
) -> None:
    """Export a run in every way, others beside it, and measure size, quality on validation, and speed of each."""
    with _one_line_errors():
        from model.benchmark.compression import measure_compression

        path = measure_compression(
            name,
            runs,
            out,
            data,
            queries,
            rounds,
            offline,
            say=_say,
        )
    console.print(f"-> {path}", soft_wrap=True)


@app.command()
def measure_update(
    name: Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="As of `benchmark`; must have times.")],
    data: Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")] = None,
    preset: Annotated[str, typer.Option(help="A preset by name, or a TOML file.")] = "small",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="As of `benchmark`.")] = 0,
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
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
) -> None:
    """What an update on a few new events costs and is worth, beside the model before and a training from scratch."""
    with _one_line_errors():
        from model.benchmark.update import measure_update as run

        with _training_bar() as report:
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
                say=_say,
                report=report,
            )
    console.print(f"-> {path}", soft_wrap=True)


@app.command()
def report(
    results: Annotated[Path, typer.Option(help="The folder of results that `benchmark` wrote.")] = Path("benchmarks"),
    page: Annotated[Path, typer.Option(help="The page: what is between its two marks is replaced.")] = Path("docs/benchmarks.md"),
    figures: Annotated[Path, typer.Option(help="The folder of plots, beside the page.")] = Path("docs/figures"),
) -> None:
    """Turn all results of a folder into tables and plots of a page: means over seeds, errors and spread."""
    with _one_line_errors():
        from model.benchmark.page import write_page

        written = write_page(results, page, figures)
    console.print(*(f"-> {path}" for path in written), sep="\n", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A folder that `train` wrote.")],
    data: Annotated[Path, typer.Option(help="The prepared data set that the run was trained on.")],
    out: Annotated[
        Path, typer.Option(help="The folder of bundles; the new one is out/<model_id>, and out/current points at it.")
    ],
    everything: Annotated[
        bool, typer.Option("--everything", help="Start popularity from all events, the held-out test part included.")
    ] = False,
    item_vectors: Annotated[
        str, typer.Option(help="How item vectors are stored: float32, or int8 with a scale for each item, a quarter of the size.")
    ] = "float32",
    weights: Annotated[
        str, typer.Option(help="How the graphs' weights are stored: float32, or int8 with a scale for each row.")
    ] = "float32",
) -> None:
    """Export a trained model as a bundle, after proving that torch, ONNX and the event-by-event fold agree."""
    with _one_line_errors():
        from model.publish import publish

        exported = publish(run, data, out, everything, item_vectors, weights)
    proof = exported.verification
    console.print(
        f"verified over {proof.vectors:,} events: state within {proof.incremental:.1e}, interests within {proof.interests:.1e}, "
        f"{proof.lists} lists the same\nbundle {exported.model_id}, {exported.bytes / 1e6:.1f} MB -> {exported.folder}",
        soft_wrap=True,
    )


@app.command()
def update(
    bundle: Annotated[Path, typer.Option("--from", help="The running bundle, `bundles/current` as a rule.")],
    events: Annotated[Path, typer.Option(help="The service's archive, or a folder that `prepare` wrote: old events and new.")],
    out: Annotated[Path | None, typer.Option(help="The folder of bundles; default: where the running one lies.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="The run that the bundle was exported from; default: the checkpoint beside the bundle.")
    ] = None,
    config: Annotated[str, typer.Option(help="A preset by name, or a TOML file; its table [update] counts.")] = "small",
    refresh: Annotated[str | None, typer.Option(help="items, heads, items+heads or all: what may change.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="For an archive: a TOML file whose table options counts.")] = None,
) -> None:
    """Learn what is new since a bundle, in minutes, and publish the result unless it is worse on the newest events."""
    with _one_line_errors():
        from model.settings import load_settings, with_refresh
        from model.update.run import update as run_update

        settings = with_refresh(load_settings(config).update, refresh)
        updated = run_update(
            bundle,
            events,
            out,
            settings,
            run,
            mapping,
            say=_say,
        )
    exported, learned = updated.exported, updated.learned
    if updated.left_out:
        errors.print(f"left out: {updated.left_out:,} events of types that the model does not know", soft_wrap=True)
    seconds = ", ".join(f"{stage} {passed:.1f}" for stage, passed in updated.seconds.items())
    console.print(
        f"learned from {learned.learned:,} new and {learned.replayed:,} old questions of {learned.users:,} users; "
        f"{learned.refreshed:,} numbers refreshed ({settings.refresh})\nseconds: {seconds}\n"
        f"bundle {exported.model_id}, {exported.bytes / 1e6:.1f} MB -> {exported.folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def rehearse(
    run: Annotated[Path, typer.Argument(help="A folder that `train` wrote.")],
    data: Annotated[Path, typer.Option(help="The prepared data set that the run was trained on.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
) -> None:
    """Write the held-out part as a script of histories, questions and events that a client can replay against a service."""
    with _one_line_errors():
        from model.rehearsal import write_rehearsal

        meta = write_rehearsal(run, data, out)
    console.print(f"{meta['queries']:,} questions of {meta['users']:,} users -> {out}", soft_wrap=True)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Bad input ends in one line that says what was wrong, and exit code 2; anything else is a bug and keeps its traceback."""
    try:
        yield
    except TrainerError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from error


@contextmanager
def _together() -> Iterator[Group]:
    """With the other processes, if torchrun started several; only the first one speaks."""
    from model.distributed import joined

    with joined() as group:
        console.quiet = not group.first
        yield group


@contextmanager
def _training_bar() -> Iterator[Callable[[Progress], None]]:
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]}  validation ndcg{task.fields[valid]}"),
    )
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("", total=1.0, epoch="1", loss="-", valid=" -")

        def report(progress: Progress) -> None:
            valid = f"@{progress.k} " + ("-" if progress.valid_ndcg is None else f"{progress.valid_ndcg:.4f}")
            epoch = f"{min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"
            done = (progress.epoch + progress.done) / progress.epochs
            bar.update(task, completed=min(1.0, done), epoch=epoch, loss=f"{progress.loss:.3f}", valid=valid)

        yield report


def main() -> None:
    # torch's exporter warns from C++ of shapes that it cannot infer; export verifies the graphs by running them.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    app()


if __name__ == "__main__":
    main()
