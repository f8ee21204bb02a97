import math

import pytest

from model.export.bundle import _validate
from model.export.verify import ExportError


def test_a_manifest_with_a_number_that_json_does_not_have_is_not_published():
    with pytest.raises(ExportError, match=r"manifest\.json: Out of range float values"):
        _validate({"metrics": [{"protocol": "temporal", "name": "recall@10", "value": math.nan}]})
