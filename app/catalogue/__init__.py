"""The items that can be recommended: their ids, rows, vectors, titles and live popularity."""
