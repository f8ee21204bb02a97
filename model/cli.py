"""`longwave-train`: the offline half on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Prepare data, train, evaluate and export a model for Longwave."
)
console = Console()
errors = Console(stderr=True)

BAD_INPUT = 2


@app.callback()
def _commands() -> None:
    """Makes `prepare` a command by name while it is the only one."""


@app.command()
def prepare(
    what: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="online-retail, ml-100k, ml-1m, synthetic-demo ..., or a path.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; an older data set there is replaced.")],
    data: Annotated[Path | None, typer.Option(help="Where to look for a data set given by name.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="For a table: key=column, for instance user=customer_id.")] = None,
    mapping: Annotated[
        Path | None, typer.Option(help="For a table: a TOML file with [columns], [[event_types]], [options].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of a synthetic world.")] = 0,
    offline: Annotated[bool, typer.Option("--offline", help="Never fetch.")] = False,
) -> None:
    """Import and clean a data set, report what was dropped and why, and write the canonical folder."""
    from model.data.errors import DataError
    from model.data.prepare import prepare as run

    try:
        dataset = run(what, out, data, column, mapping, seed, offline)
    except DataError as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from error
    console.print(dataset.cleaning.table())
    counts = dataset.manifest.counts
    console.print(
        f"{dataset.manifest.name}: {counts.events:,} events of {counts.users:,} users over {counts.items:,} items, "
        f"{counts.baskets:,} baskets, fingerprint {dataset.manifest.fingerprint[:12]} -> {out}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    app()


if __name__ == "__main__":
    main()
