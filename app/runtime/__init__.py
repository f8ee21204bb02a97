"""The bundle at run time: its manifest, its files, its ONNX Runtime sessions."""
