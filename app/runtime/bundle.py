"""A bundle on disk, read and checked: manifest, checksums, arrays, item metadata. Nothing is half-accepted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from app.arrays import mapped
from app.errors import BundleError
from app.packed import GroupPacking, Groups, TextPacking, Texts
from app.runtime.manifest import FORMAT_VERSION, Manifest

MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
_NOT_CONTENT = ("model_id", "created_at", "source_commit", "metrics")


class ItemRecord(msgspec.Struct, frozen=True):
    """One line of items.jsonl; the line number is the item's row."""

    id: str
    title: str | None = None
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Items:
    """The lines of items.jsonl, packed: N ids, titles and lists of categories by row."""

    ids: Texts
    titles: Texts
    categories: Groups

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> ItemRecord:
        """The record of a row from 0 to N - 1."""
        item_id = self.ids[row]
        assert item_id is not None
        return ItemRecord(item_id, self.titles[row], self.categories[row])

    def __iter__(self) -> Iterator[ItemRecord]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True)
class Bundle:
    """A verified bundle of N items.

    Attributes:
        path: its folder.
        vectors: (N, D) float32, memory-mapped: workers share the pages. Those that are stored as int8 are multiplied out, and
            each worker has its own.
        bias: (N,) float32.
        popularity: (N, P) float64 decayed counts at `manifest.popularity.as_of_ms`.
        items: N of them. labels: (N, C) float32, None where nothing says what items are about.
    """

    path: Path
    manifest: Manifest
    vectors: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    popularity: npt.NDArray[np.float64]
    items: Items
    labels: npt.NDArray[np.float32] | None

    def file(self, name: str) -> Path:
        return self.path / name


def read_bundle(path: Path) -> Bundle:
    """Read a bundle and verify every file's checksum and every array's shape.

    Raises:
        BundleError: names the file (and the manifest's field) that is missing, damaged or of another format.
    """
    manifest = read_manifest(path)
    _verify_files(path, manifest)
    labels = manifest.labels
    n, half_lives = manifest.items.count, len(manifest.popularity.half_lives_s)
    return Bundle(
        path=path,
        manifest=manifest,
        vectors=_vectors(path, manifest),
        bias=_array(path, manifest.items.bias, np.float32, (n,)),
        popularity=_array(path, manifest.items.popularity, np.float64, (n, half_lives)),
        items=_items(path, manifest.items.metadata, n),
        labels=None if labels is None else _array(path, labels.weights, np.float32, (n, len(labels.names))),
    )


def read_manifest(path: Path) -> Manifest:
    """Only the manifest, parsed and checked against the format and its own `model_id`.

    Raises:
        BundleError: no folder, no manifest, no JSON, another format version, a field that is not as the format says, or a
            content other than the one that was exported.
    """
    file = path / MANIFEST
    if not path.is_dir():
        raise BundleError(f"{path}: no such folder; expected a bundle (see LONGWAVE_BUNDLE_DIR)")
    try:
        document: Any = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{file}: missing; is {path} a bundle?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{file}: cannot be read as JSON: {error}") from None
    version = document.get("format_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{file}: format_version {version} is newer than this service, which reads {FORMAT_VERSION}: upgrade longwave"
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BundleError(f"{file}: field {field}: {first['msg']}{more}") from None
    if content_id(document) != manifest.model_id:
        raise BundleError(f"{file}: damaged or edited: its content does not match model_id")
    return manifest


def content_id(document: Mapping[str, Any]) -> str:
    """The model id that belongs to a manifest's JSON object: 16 hex digits of a hash over all that the service acts on.

    The trainer computes the same. It names the checksums of the files, so that it covers the whole bundle; what says only when,
    from what and how well the model was made stays out.
    """
    content = {name: value for name, value in document.items() if name not in _NOT_CONTENT}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _verify_files(path: Path, manifest: Manifest) -> None:
    named = {graph.file for graph in manifest.graphs.values()} | {GOLDEN}
    named |= {manifest.items.metadata, manifest.items.vectors, manifest.items.bias, manifest.items.popularity}
    if manifest.text is not None:
        named |= {manifest.text.encoder, manifest.text.tokenizer}
    if manifest.labels is not None:
        named.add(manifest.labels.weights)
    if manifest.items.scales is not None:
        named.add(manifest.items.scales)
    for name in sorted(named - manifest.files.keys()):
        raise BundleError(f"{path / MANIFEST}: field files: no checksum for {name}, which the manifest uses")
    for name, expected in manifest.files.items():
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts:
            raise BundleError(f"{path / MANIFEST}: field files: {name!r} leaves the bundle's folder")
        try:
            with (path / relative).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise BundleError(f"{path / relative}: {error.strerror or error}") from None
        if found != expected:
            raise BundleError(f"{path / relative}: damaged: sha256 is {found[:16]}…, the manifest says {expected[:16]}…")


def _vectors(path: Path, manifest: Manifest) -> npt.NDArray[np.float32]:
    items, shape = manifest.items, (manifest.items.count, manifest.width)
    if items.scales is None:
        return _array(path, items.vectors, np.float32, shape)
    codes = _array(path, items.vectors, np.int8, shape)
    scales = _array(path, items.scales, np.float32, shape[:1])
    # In float32, as the trainer does it: the model was verified with these very numbers.
    vectors: npt.NDArray[np.float32] = np.multiply(codes, scales[:, np.newaxis], dtype=np.float32)
    return vectors


def _array(path: Path, name: str, dtype: type, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    file = path / name
    try:
        array = mapped(file)
    except (OSError, ValueError, EOFError) as error:
        raise BundleError(f"{file}: not a .npy array: {error}") from None
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise BundleError(
            f"{file}: expected {np.dtype(dtype).name} of shape {shape}, found {array.dtype.name} of shape {array.shape}"
        )
    if not np.isfinite(array).all():
        raise BundleError(f"{file}: holds NaN or infinity in row {int(np.argwhere(~np.isfinite(array))[0][0])}")
    return np.asarray(array)


def _items(path: Path, name: str, count: int) -> Items:
    file = path / name
    decode = msgspec.json.Decoder(ItemRecord).decode
    ids, titles, categories = TextPacking(), TextPacking(), GroupPacking()
    number = 0
    try:
        with file.open("rb") as lines:
            for line in lines:
                number += 1
                item = decode(line)
                ids.add(item.id)
                titles.add(item.title)
                categories.add(item.categories)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BundleError(f"{file}: line {number}: {error}") from None
    if number != count:
        raise BundleError(f"{file}: {number} lines, but the manifest's items.count is {count}")
    return Items(ids.packed(), titles.packed(), categories.packed())
