"""What filters can ask of items: their attributes, and what every item has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_not
from typing import Final

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.catalogue.columns import Column, Kind, LookupColumn, StringColumn
from app.catalogue.lists import ListColumn

_BUILT_IN: Final[Mapping[str, Kind]] = {"id": "string", "title": "string", "categories": "list"}


class ItemFields:
    """The columns of a catalogue by name. Titles and categories are brought up to date when they are asked for."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._id = LookupColumn(lambda: len(catalogue), self._rows_of_id)
        self._titles = StringColumn(0)
        self._titles_at = -1
        self._titled: list[str | None] = []  # what each row has there
        self._categories = ListColumn(0)
        self._categories_at = -1
        self._filed: list[tuple[str, ...]] = []

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
            return self._title_column()
        if name == "categories":
            return self._category_column()
        return self._catalogue.attributes.column(name)

    def _rows_of_id(self, item_id: str) -> Sequence[int]:
        row = self._catalogue.row(item_id)
        return () if row is None else (row,)

    def _title_column(self) -> Column:
        if self._titles_at != self._catalogue.changes:
            titles = self._catalogue.titles
            self._titles.grow(len(titles))
            for row in _changed(titles, self._titled):
                title = titles[row]
                if title is None:
                    self._titles.drop(row)
                else:
                    self._titles.put(row, title)
            self._titled, self._titles_at = list(titles), self._catalogue.changes
        return self._titles

    def _category_column(self) -> Column:
        if self._categories_at != self._catalogue.changes:
            categories = self._catalogue.categories
            self._categories.grow(len(categories))
            for row in _changed(categories, self._filed):
                self._categories.put(row, categories[row])
            self._filed, self._categories_at = list(categories), self._catalogue.changes
        return self._categories


def _changed(now: Sequence[object], before: Sequence[object]) -> list[int]:
    """Rows that hold another object than before, or are new."""
    changed = np.ones(len(now), np.bool_)
    changed[: len(before)] = np.fromiter(map(is_not, now, before), np.bool_, len(before))
    rows: list[int] = np.flatnonzero(changed).tolist()
    return rows
