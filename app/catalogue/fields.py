"""What filters can ask of items: their attributes, and what every item has."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from app.catalogue.catalogue import Catalogue
from app.catalogue.columns import Column, Kind, ListColumn, LookupColumn

_BUILT_IN: Final[Mapping[str, Kind]] = {"id": "string", "title": "string", "categories": "list"}


class ItemFields:
    """The columns of a catalogue by name. Titles and categories are brought up to date when they are asked for."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._id = LookupColumn(lambda: len(catalogue), self._rows_of_id)
        self._titles: dict[str, list[int]] = {}
        self._titles_at = -1
        self._categories = ListColumn(0)
        self._categories_at = -1
        self._filed: list[tuple[str, ...] | None] = []  # what each row has there

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

    def values(self, name: str, row: int) -> Sequence[object]:
        """What a row has under a name: several entries of a list, one of anything else, none if it has no value."""
        if name == "id":
            return (self._catalogue.ids[row],)
        if name == "categories":
            return self._catalogue.categories[row]
        value = self._catalogue.titles[row] if name == "title" else self._catalogue.attributes.value(row, name)
        if value is None:
            return ()
        return value if isinstance(value, list) else (value,)

    def _rows_of_id(self, item_id: str) -> Sequence[int]:
        row = self._catalogue.row(item_id)
        return () if row is None else (row,)

    def _title_column(self) -> Column:
        if self._titles_at != self._catalogue.changes:
            titles = defaultdict(list)
            for row, title in enumerate(self._catalogue.titles):
                if title is not None:
                    titles[title].append(row)
            self._titles, self._titles_at = dict(titles), self._catalogue.changes
        titled = self._catalogue.titles
        return LookupColumn(
            lambda: len(titled),
            lambda title: self._titles.get(title, ()),
            lambda: np.fromiter((title is not None for title in titled), np.bool_, len(titled)),
        )

    def _category_column(self) -> Column:
        categories = self._catalogue.categories
        if self._categories_at != self._catalogue.changes:
            self._categories.grow(len(categories))
            self._filed += [None] * (len(categories) - len(self._filed))
            for row, (now, filed) in enumerate(zip(categories, self._filed, strict=True)):
                if now is not filed:
                    self._categories.put(row, now)
            self._filed, self._categories_at = list(categories), self._catalogue.changes
        return self._categories
