"""Longwave's offline half: from raw events to a bundle. No FastAPI, no Redis."""

import os

# ONNX Runtime's official builds report sessions and models to their maker unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
