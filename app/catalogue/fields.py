"""What filters can ask of items: their attributes, and what every item has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from app.catalogue.catalogue import Catalogue
from app.catalogue.columns import Column, Kind, LookupColumn
from app.catalogue.names import TitleColumn

_BUILT_IN: Final[Mapping[str, Kind]] = {"id": "string", "title": "string", "categories": "list"}


class ItemFields:
    """The columns of a catalogue by name."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # Of the catalogue alone: with a method of this object it would be a cycle, which keeps the catalogue of a model let go.
        self._id = LookupColumn(lambda: len(catalogue), lambda item_id: _rows_of_id(catalogue, item_id))
        self._title = TitleColumn(catalogue.titles)

    @property
    def version(self) -> int:
        """Another one whenever any answer may be."""
        return self._catalogue.changes

    def __len__(self) -> int:
        return len(self._catalogue)

    def kinds(self) -> Mapping[str, Kind]:
        """The type of each name."""
        return {**_BUILT_IN, **self._catalogue.attributes.kinds()}

    def column(self, name: str) -> Column | None:
        """The column of a name; None if no item ever had it."""
        if name == "id":
            return self._id
        if name == "title":
            return self._title
        if name == "categories":
            return self._catalogue.categories
        return self._catalogue.attributes.column(name)


def _rows_of_id(catalogue: Catalogue, item_id: str) -> Sequence[int]:
    row = catalogue.row(item_id)
    return () if row is None else (row,)
