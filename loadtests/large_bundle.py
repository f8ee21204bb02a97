"""Bundles of any number of items for measuring: rows drawn to match a trained model's, the graphs that model's own.

`python -m loadtests.large_bundle BUNDLE ITEMS OUT` writes one. The graphs take any number of items, and golden vectors are on
items of their own, so both go over as they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from app.runtime.bundle import MANIFEST, Bundle, content_id, read_bundle

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CATEGORIES: Final = 64
_CLUSTERS: Final = 64
_PRIOR: Final = 64  # rows that the common covariance counts for, beside a cluster's own
_SPREAD: Final = 0.5  # of the logarithm of popularity, beside that of the row that it is drawn from


@dataclass(frozen=True)
class Drawn:
    """N rows: vectors (N, D), bias (N,), popularity (N, P), cluster (N,)."""

    vectors: Float32
    bias: Float32
    popularity: Float64
    cluster: Int64


def draw(bundle: Bundle, count: int, seed: int = 0) -> Drawn:
    """So many rows from a mixture of Gaussians fitted on a bundle's vectors and biases.

    Norms, spectrum, the correlation of norm with bias, and the angles to the nearest neighbours come out as the model's; each row
    has the popularity, nearly, of one of the model's rows in its cluster.
    """
    rng = np.random.default_rng(seed)
    known = np.concatenate([bundle.vectors, bundle.bias[:, np.newaxis]], 1).astype(np.float64)  # (n, D + 1)
    cluster, centres = _clusters(known, min(_CLUSTERS, len(known)), rng)
    off = known - centres[cluster]
    common = off.T @ off / len(off)
    size = np.bincount(cluster, minlength=len(centres))
    of_row = rng.choice(len(centres), count, p=size / size.sum())
    whole, source = np.empty((count, known.shape[1]), np.float32), np.empty(count, np.int64)
    for number, centre in enumerate(centres):
        places, own = np.flatnonzero(of_row == number), np.flatnonzero(cluster == number)
        if not len(places):
            continue
        covariance = (off[own].T @ off[own] + _PRIOR * common) / (len(own) + _PRIOR)
        root = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance)))
        whole[places] = centre + rng.standard_normal((len(places), len(root))) @ root.T
        source[places] = rng.choice(own, len(places))
    popularity = bundle.popularity[source] * np.exp(_SPREAD * rng.standard_normal((count, 1)))
    return Drawn(np.ascontiguousarray(whole[:, :-1]), whole[:, -1].copy(), popularity, of_row)


def _clusters(rows: Float64, count: int, rng: np.random.Generator) -> tuple[Int64, Float64]:
    centres = rows[rng.choice(len(rows), count, replace=False)].copy()
    for _ in range(15):
        nearest = (np.square(centres).sum(1) - 2 * rows @ centres.T).argmin(1)
        for number in range(count):
            mine = rows[nearest == number]
            centres[number] = mine.mean(0) if len(mine) else rows[rng.integers(len(rows))]
    return nearest, centres


def item_id(row: int) -> str:
    return f"item-{row:07d}"


def write_large_bundle(source: Path, count: int, out: Path, seed: int = 0) -> Path:
    """Write a bundle of so many items as `out`, and return it."""
    bundle = read_bundle(source)
    drawn = draw(bundle, count, seed)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source.resolve(), out, ignore=shutil.ignore_patterns("items"))
    (out / "items").mkdir()
    np.save(out / "items/vectors.npy", drawn.vectors)
    np.save(out / "items/bias.npy", drawn.bias)
    np.save(out / "items/popularity.npy", drawn.popularity)
    with (out / "items/items.jsonl").open("w", encoding="utf-8") as lines:
        for row, cluster in enumerate(drawn.cluster.tolist()):
            item = {"id": item_id(row), "title": f"Thing {row} of the kind {cluster}", "categories": [f"kind {cluster}"]}
            lines.write(json.dumps(item) + "\n")
    document: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    document["data_name"] = f"{document['data_name']}, drawn to {count} items"
    document["items"] = {
        "count": count,
        "metadata": "items/items.jsonl",
        "vectors": "items/vectors.npy",
        "bias": "items/bias.npy",
        "popularity": "items/popularity.npy",
    }
    document["labels"] = None  # nobody knows what drawn rows are about
    if "profile" in document["graphs"]:
        del document["graphs"]["profile"]
    kept = [name for name in document["files"] if (out / name).exists()]
    document["files"] = {name: _sha256(out / name) for name in sorted({*kept, *_ITEM_FILES})}
    document["model_id"] = content_id(document)
    (out / MANIFEST).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return out


_ITEM_FILES: Final = ("items/items.jsonl", "items/vectors.npy", "items/bias.npy", "items/popularity.npy")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


if __name__ == "__main__":
    write_large_bundle(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
