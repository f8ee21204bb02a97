"""Files that are generated from the code say what the code says."""

from pathlib import Path

import pytest

from app.main import openapi_document
from app.runtime.manifest import json_schema
from app.settings import Settings, reference, variable

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "content", "command"),
    [
        ("schema/openapi.json", openapi_document, "python -m app.main"),
        ("schema/manifest.schema.json", json_schema, "python -m app.runtime.manifest"),
        ("docs/settings.md", reference, "python -m app.settings"),
    ],
)
def test_a_generated_file_is_current(file, content, command):
    assert (ROOT / file).read_text(encoding="utf-8") == content(), f"{file} is stale: run `{command}`"


def test_every_setting_is_documented():
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert [name for name in Settings.model_fields if f"`{variable(name)}`" not in page] == []
