"""Ids and other texts of clients as Redis keeps them: UTF-8, lone surrogates included, which JSON can carry."""

from __future__ import annotations


def encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def decode_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")
