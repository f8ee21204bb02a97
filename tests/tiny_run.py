"""A data set and a model trained on it in seconds: the smallest synthetic world, with item texts, queries and user attributes.

The text encoder is a transformer of random weights over the world's own words: real code, no download, no learning of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from model.data.dataset import write_dataset
from model.data.synthetic import synthetic_world
from model.settings import DataSettings, Settings, TrainSettings
from model.task import load_task
from model.train import Trainer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
# Everything bounded is small, so that rings wrap, memories overflow and chunks are cut within a hundred events.
MODEL = {
    "width": 16,
    "heads": 2,
    "ring": 8,
    "ring_width": 8,
    "accumulator_width": 8,
    "repeats": 16,
    "transition": 8,
    "kinship_decays": (0.3, 0.8),
    "item_dropout": 0.1,
    "repeat_hidden": 8,
    "interests": 2,
    "event_half_lives": (8.0, 64.0),
}
TRAIN = TrainSettings(epochs=5, least_steps=0, lanes=16, chunk=32, warmup_steps=5, learning_rate=5e-3, threads=1)


@dataclass(frozen=True)
class TinyRun:
    """Folders of the prepared data, the finished run and the text encoder."""

    data: Path
    run: Path
    encoder: Path


def tiny_settings(encoder: Path | str = "") -> Settings:
    return Settings(DataSettings(text_encoder=str(encoder)), TRAIN, dict(MODEL))


def write_tiny_run(folder: Path) -> None:
    """Write what `tiny_run(folder)` names."""
    paths = tiny_run(folder)
    dataset = synthetic_world("tiny").dataset
    write_dataset(dataset, paths.data)
    _write_encoder(dataset.items.get_column("title").to_list(), paths.encoder)
    settings = tiny_settings(paths.encoder)
    Trainer(load_task(paths.data, settings.data), settings, paths.run).run()


def tiny_run(folder: Path) -> TinyRun:
    return TinyRun(folder / "data", folder / "run", folder / "encoder")


def _write_encoder(texts: list[str], folder: Path) -> None:
    words = sorted({word.lower() for text in texts for word in text.split()})
    tokenizer = Tokenizer(WordPiece({word: row for row, word in enumerate((*SPECIAL, *words))}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(words),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
