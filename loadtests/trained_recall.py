"""The index on rows that were trained, and on as many drawn ones: is what was measured on drawn rows true of a model's own?

`python -m loadtests.trained_recall BUNDLE RUN DATA` adds what it finds for a bundle, the run that it was exported from and the
data of the run to loadtests/results/trained_recall.json. The service has no index for so few rows, and would look at all of them:
so the index itself is asked, and told to look at a part, as it does of a million. The users are real, each at the state before a
validation question. `--items 1000000` draws so many rows like the model's instead, and asks as the service does.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from app.recommend.index import RowIndex, Source, build, typical_weights
from app.recommend.retrieve import SCANNED
from app.recommend.scan import Users
from app.runtime.bundle import Bundle, read_bundle
from loadtests.large_bundle import draw
from loadtests.machine import describe_commit, describe_machine
from loadtests.report import write
from loadtests.samples import rounded
from model.assess import load_run
from model.benchmark.opened import Opened
from model.data.sequences import Queries
from model.data.splits import select
from model.task import Task

Array = npt.NDArray[Any]

RESULTS: Final = Path(__file__).parent / "results" / "trained_recall.json"
SHARES: Final = (0.032, 0.064, 0.128, 0.256, 0.512, 1.0)
"""Of few rows, looked at. The first is what the service's 32,000 are of a million."""
_KEPT: Final = (10, 100)
_USERS: Final = 512
_TOGETHER: Final = 32
_TYPICAL: Final = 8  # users whose weights say what is stored how exactly, as in loadtests/catalogue.py


@dataclass(frozen=True)
class Rows:
    """N rows: vectors (N, D), bias (N,), popularity (N, P) float32."""

    vectors: Array
    bias: Array
    popularity: Array

    def best(self, users: dict[str, Array], number: int) -> Array:
        """(n, number) the best of all rows, best first; without own repeats, which are scored whatever the index finds."""
        whole = Users(users)
        out = np.empty((len(whole), number), np.int64)
        for start in range(0, len(whole), _TOGETHER):
            some = slice(start, start + _TOGETHER)
            scores = whole.scores(some, self.vectors, self.bias, self.popularity)
            near = np.argpartition(-scores, number, 1)[:, :number]
            order = np.argsort(-np.take_along_axis(scores, near, 1), 1)
            out[some] = np.take_along_axis(near, order, 1)
        return out


def real_users(opened: Opened, task: Task, as_of_ms: int, most: int) -> dict[str, Array]:
    """What interest.onnx says of up to `most` users at that moment: interests (n, J, D), popularity_weight (n, P)."""
    valid = task.split.valid
    _, last = np.unique(valid.user[::-1], return_index=True)
    chosen = np.random.default_rng(0).permutation(len(valid) - 1 - last)[:most]
    queries = select(valid, np.sort(chosen))
    moment = np.maximum(queries.as_of, as_of_ms)  # time does not run backwards for who came later
    queries = Queries(queries.user, queries.position, moment, queries.target_offsets, queries.target)
    order = np.argsort(queries.position - task.seq.offsets[queries.user], kind="stable")
    parts = []
    for start in range(0, len(order), _TOGETHER):
        some = order[start : start + _TOGETHER]
        users = queries.user[some]
        state = opened.run("initial", {"attributes": task.inputs.attributes[users].numpy()})
        state = opened.folded(task, state, task.seq.offsets[users], queries.position[some])
        parts.append(opened.run("interest", opened.question(task, state, queries, some)))
    return {name: np.concatenate([part[name] for part in parts]) for name in ("interests", "popularity_weight")}


def recalls(rows: Rows, users: dict[str, Array], folder: Path) -> list[dict[str, Any]]:
    """Which share of the exact best an index of the rows, made in `folder`, finds for the users; a line for each effort."""
    weights = typical_weights(users["interests"][:_TYPICAL], users["popularity_weight"][:_TYPICAL])
    build(Source(rows.vectors, rows.bias, rows.popularity, weights), folder)
    index, count = RowIndex(folder), len(rows.bias)
    best = rows.best(users, min(max(_KEPT), count - 1))
    each = users["interests"].shape[1]
    queries = index.queries(
        users["interests"].reshape(-1, users["interests"].shape[2]), np.repeat(users["popularity_weight"], each, 0)
    )
    lines = []
    for kept, scored, looked_at in efforts(count):
        hits = index.search(queries, scored, looked_at).reshape(len(best), -1)
        found = [np.isin(right[:kept], own).mean() for right, own in zip(best, hits, strict=True)]
        lines.append({"k": kept, "scored": scored, "looked_at": looked_at, "recall": float(np.mean(found))})
    return lines


def efforts(count: int) -> list[tuple[int, int, int]]:
    """How many rows of so many are asked for, scored exactly, and looked at.

    Of many, as many as the service takes. Of few it would take all; so parts of them, and beside the 4 m + 600 that it scores,
    which are a good part of few rows and nothing of a million, the least that is of use.
    """
    if count > SCANNED:
        return [(kept, 4 * kept + 600, SCANNED) for kept in _KEPT]
    shares = [int(share * count) for share in SHARES]
    return [
        (kept, scored, max(looked_at, kept))
        for kept in _KEPT
        if kept < count
        for scored in sorted({min(2 * kept, count), min(4 * kept + 600, count)})
        for looked_at in shares
    ]


def measure(bundle: Bundle, opened: Opened, task: Task, most: int = _USERS, many: int = 0) -> dict[str, Any]:
    """The index on the bundle's rows and on as many drawn to match them, or on `many` of these, for the same users."""
    users = real_users(opened, task, bundle.manifest.popularity.as_of_ms, most)
    with tempfile.TemporaryDirectory() as scratch:
        if many:
            return {
                "items": many,
                "users": len(users["interests"]),
                "drawn": recalls(_drawn(bundle, many), users, Path(scratch) / "i"),
            }
        trained = Rows(np.asarray(bundle.vectors), bundle.bias, bundle.popularity.astype(np.float32))
        return {
            "items": len(bundle.bias),
            "users": len(users["interests"]),
            "trained": recalls(trained, users, Path(scratch) / "trained"),
            "drawn": recalls(_drawn(bundle, len(bundle.bias)), users, Path(scratch) / "drawn"),
        }


def _drawn(bundle: Bundle, count: int) -> Rows:
    drawn = draw(bundle, count)
    return Rows(drawn.vectors, drawn.bias, drawn.popularity.astype(np.float32))


def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle of a trained model.")],
    run: Annotated[Path, typer.Argument(help="The run that it was exported from.")],
    data: Annotated[Path, typer.Argument(help="The run's prepared data.")],
    items: Annotated[int, typer.Option(help="Draw so many rows like the model's instead, and ask as the service does.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the figures go; those of other models stay there.")] = RESULTS,
) -> None:
    """Measure the recall of the index on a trained model's own rows, for its real users."""
    opened_bundle = read_bundle(bundle)
    _, task = load_run(run, data)
    whole: dict[str, Any] = json.loads(out.read_bytes()) if out.exists() else {}
    manifest = opened_bundle.manifest
    name = f"{manifest.data_name}, drawn to {items}" if items else manifest.data_name
    whole[name] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": describe_commit(),
        "machine": describe_machine(),
        "model_id": manifest.model_id,
        **measure(opened_bundle, Opened(bundle.resolve()), task, many=items),
    }
    write(rounded(whole), out)
    Console().print(f"-> {os.path.relpath(out)}")


if __name__ == "__main__":
    typer.run(bench)
