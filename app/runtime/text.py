"""The bundle's text encoder: words to vectors, for events that carry a query or a comment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import structlog
from tokenizers import Tokenizer

from app.errors import BundleError
from app.runtime.bundle import Bundle
from app.runtime.device import CPU, Device

Float32 = npt.NDArray[np.float32]

log = structlog.get_logger()

_CACHED_TEXTS = 4096
_BATCH = 32


class TextEncoder:
    """Embeds texts as the trainer did; pooling and normalising are in the graph. Thread-safe; remembers recent texts."""

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        """Open encoder and tokenizer of a bundle whose manifest has `text`.

        Raises:
            BundleError: one of the two files cannot be opened.
        """
        spec = bundle.manifest.text
        if spec is None:
            raise BundleError(f"{bundle.path}/manifest.json: field text: this model has no text encoder")
        self.width = spec.width
        self._options = options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        options.log_severity_level = 3
        file = bundle.file(spec.tokenizer)
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
            self._file = file = bundle.file(spec.encoder)
            self._session = ort.InferenceSession(file, options, providers=list(device.providers))
        except Exception as error:  # tokenizers and ONNX Runtime raise bare exceptions of many kinds
            raise BundleError(f"{file}: cannot be opened: {str(error).splitlines()[0]}") from None
        self._tokenizer.enable_truncation(spec.max_tokens)
        self._tokenizer.enable_padding()
        self._is_away = device.name != "cpu"
        self._cache: OrderedDict[str, Float32] = OrderedDict()
        self._lock = Lock()

    def embed(self, texts: Sequence[str | None]) -> Float32:
        """Embed n texts: (n, W) float32; None and the empty text are zeros."""
        vectors = np.zeros((len(texts), self.width), np.float32)
        rows: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            if text:
                rows.setdefault(text, []).append(row)
        missing = []
        with self._lock:
            for text, places in rows.items():
                if (found := self._cache.get(text)) is None:
                    missing.append(text)
                else:
                    self._cache.move_to_end(text)
                    vectors[places] = found
        missing.sort(key=len)  # texts of like length share a batch, so that little is padding
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            for text, vector in zip(batch, self._encode(batch), strict=True):
                vectors[rows[text]] = vector
                with self._lock:
                    self._cache[text] = vector
                    if len(self._cache) > _CACHED_TEXTS:
                        self._cache.popitem(last=False)
        return vectors

    def _encode(self, texts: list[str]) -> Float32:
        tokens = self._tokenizer.encode_batch(texts)
        mask = np.asarray([token.attention_mask for token in tokens], np.int64)
        ids = np.asarray([token.ids for token in tokens], np.int64)
        feeds = {"ids": ids, "mask": mask}
        try:
            return np.asarray(self._session.run(None, feeds)[0])
        except Exception as error:  # ONNX Runtime raises many kinds, none of them public
            if not self._is_away:
                raise
            session = ort.InferenceSession(self._file, self._options, providers=[CPU])
            found = np.asarray(session.run(None, feeds)[0])
            self._session, self._is_away = session, False
            log.error("the device failed, the CPU goes on", doing="the text encoder", reason=str(error))
            return found
