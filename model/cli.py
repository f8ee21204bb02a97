"""`longwave-train`: the offline half on the command line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from model.benchmark import commands
from model.console import console, errors, one_line_errors, say, together, training_bar

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Prepare data, train, evaluate and export a model for Longwave."
)


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
    seed: Annotated[int, typer.Option(min=0, help="Seed of a synthetic world.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
    items: Annotated[
        Path | None, typer.Option(help="A table of items: item_id, title, categories, numbers feature_*, lists vector_*.")
    ] = None,
) -> None:
    """Import and clean a data set, report what was dropped and why, and write the canonical folder."""
    from model.data.errors import NoEventsError
    from model.data.prepare import prepare as run

    with one_line_errors():
        try:
            dataset = run(what, out, data, column, mapping, seed, offline, items)
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
    with one_line_errors(), together() as group:
        from model.alone import alone
        from model.history import best_ndcg
        from model.loop import check_free, remove_run
        from model.settings import load_settings
        from model.task import load_task
        from model.train import Trainer
        from model.update.origin import read_origin

        settings = load_settings(config)
        if platform:
            settings = replace(settings, data=replace(settings.data, platform=platform))
        with alone(out):
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
            if trainer.batch < settings.train.lanes:
                say(f"few events: {trainer.batch} lanes instead of {settings.train.lanes}, for more steps (train.least_steps)")
            with training_bar() as report:
                checkpoint = trainer.run(report)
    best = best_ndcg(checkpoint.history)
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
    with one_line_errors():
        from model.teach import teach as run

        run(data, runs, out, top, temperature, say=say)
    console.print(f"-> {out}", soft_wrap=True)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A folder that `train` wrote.")],
    data: Annotated[Path, typer.Option(help="The prepared data set that the run was trained on.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the report goes; default: `report` in the run's folder, `report-PLATFORM` with --platform, and with "
            "`-item-vectors=int8` and `-weights=int8` behind that where these are asked for."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Ask only the first so many test queries; 0 asks all.")] = 0,
    platform: Annotated[str, typer.Option(help="Ask only what was answered on this platform.")] = "",
    ledger: Annotated[
        Path | None,
        typer.Option(help="Where this look at the test part is noted; default: longwave/ledger.jsonl in $XDG_STATE_HOME."),
    ] = None,
    item_vectors: Annotated[str, typer.Option(help="As what the bundle stores item vectors: float32 or int8.")] = "float32",
    weights: Annotated[str, typer.Option(help="As what the bundle stores weights: float32 or int8.")] = "float32",
) -> None:
    """Measure a trained model on its test part, the baselines beside it; writes report.md, report.json and plots."""
    with one_line_errors():
        from model.assess import assess
        from model.files import check_place
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
        named = [quote(platform, safe="")] if platform else []  # which leaves no "="
        stored = {"item-vectors": item_vectors, "weights": weights}
        named += [f"{what}={how}" for what, how in stored.items() if how != "float32"]
        folder = out or run / "-".join(["report", *named])
        check_place(folder)  # before the look, which counts whether its report can be written or not
        report = assess(run, data, limit, platform, item_vectors, weights)
        if noted.exists():
            note(noted, "evaluate", report, f"{run}, platform {platform}" if platform else str(run))
        write_report(report, folder)
    console.print(to_markdown(report), markup=False, highlight=False, soft_wrap=True)
    console.print(f"-> {folder}", soft_wrap=True)


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
    with one_line_errors():
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
    with one_line_errors():
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
            say=say,
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
    with one_line_errors():
        from model.files import check_place
        from model.rehearsal import write_rehearsal

        check_place(out)
        meta = write_rehearsal(run, data, out)
    console.print(f"{meta['queries']:,} questions, {meta['users']:,} users to tell of -> {out}", soft_wrap=True)


for measuring in (
    commands.benchmark,
    commands.compare,
    commands.sweep,
    commands.speed,
    commands.compression,
    commands.measure_update,
    commands.measure_cold,
    commands.measure_platforms,
    commands.report,
):
    app.command(rich_help_panel="Measuring")(measuring)


def main() -> None:
    # torch's exporter warns from C++ of shapes that it cannot infer; export verifies the graphs by running them.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    app()


if __name__ == "__main__":
    main()
