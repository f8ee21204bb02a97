"""Longwave's online half: the service. No torch, ever."""

import os

# ONNX Runtime's official builds report sessions and models to their maker unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
