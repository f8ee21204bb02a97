"""`longwave-train teach`: teachers are asked every training question, once, and the best of their answers are kept as arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.baselines.nets.checkpoint import EncoderCheckpoint
from model.baselines.nets.train import encoder_scores
from model.checkpoint import Checkpoint
from model.compare import load_best
from model.data.dataset import read_dataset
from model.data.splits import select
from model.device import device_of
from model.files import check_folder, replacing, write_whole
from model.predict import score_blocks
from model.seen import seen_of
from model.settings import DataSettings
from model.task import Task, make_task
from model.teacher import FORMAT, MANIFEST, ROWS, SHARES, Asked, TeacherError

COLDEST, HOTTEST = 0.001, 1000.0
"""Far colder, scores over the temperature are no float32 any more; far hotter, all items have one share."""


def teach(
    data: Path,
    runs: Sequence[Path],
    out: Path,
    top: int = 100,
    temperature: float = 1.0,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Ask runs, finished or not, all training questions and write the folder `out`; returns its manifest.

    Args:
        runs: of our net or of the neural baselines, all cut in the same way; each with its best weights so far.
        top: how many items are kept of each answer. temperature: by which the teachers' scores are divided, in 0.001..1000.
        device: where they are asked, as of the setting train.device.

    Raises:
        DeviceError: the device is not there.
        TrainerError: a run is missing, damaged or of other data, or the place cannot be written.
    """
    if top < 1:
        raise TeacherError(f"--top must be at least 1, got {top}")
    if not COLDEST <= temperature <= HOTTEST:
        raise TeacherError(f"--temperature must be in {COLDEST}..{HOTTEST}, got {temperature}")
    check_folder(out)
    where = device_of(device)
    dataset = read_dataset(data)
    teachers = [(run, load_best(run)) for run in runs]
    tasks: list[Task] = []
    for run, checkpoint in teachers:
        checkpoint.net.to(where)
        text = checkpoint.item_text if isinstance(checkpoint, Checkpoint) else None
        task = make_task(dataset, DataSettings(**checkpoint.settings["data"]), None if text is None else text.numpy())
        if checkpoint.data["fingerprint"] != task.data["fingerprint"]:
            raise TeacherError(f"{run}: trained on other data than {data}")
        if tasks and Asked.of(task) != Asked.of(tasks[0]):
            raise TeacherError(f"{run}: asked in another way than {runs[0]}: their [data] settings differ")
        tasks.append(task)
    asked = Asked.of(tasks[0])
    top = min(top, asked.items)
    rows = np.zeros((asked.queries, top), np.uint16 if asked.items <= 2**16 else np.int32)
    shares = np.zeros((asked.queries, top), np.float16)
    streams = [_scores(checkpoint, task) for (_, checkpoint), task in zip(teachers, tasks, strict=True)]
    task, done, held, hits = tasks[0], 0, 0.0, 0
    for blocks in zip(*streams, strict=True):
        part = slice(done, done + len(blocks[0]))
        mean = _mean_softmax(blocks, task, part, temperature)
        best = torch.topk(mean, top)
        rows[part], shares[part] = best.indices.cpu().numpy(), (best.values / best.values.sum(1, keepdim=True)).cpu().numpy()
        held += float(best.values.sum())
        chosen = select(task.train_queries, np.arange(part.start, part.stop))
        first = np.repeat(best.indices[:, 0].cpu().numpy(), np.diff(chosen.target_offsets))
        hits += int((chosen.target == first).sum())  # of a basket's items, all different, any is right
        done = part.stop
    manifest = {
        "format": FORMAT,
        **asdict(asked),
        "data": task.data,
        "runs": [run.name for run in runs],
        "top": top,
        "temperature": temperature,
        "kept": held / max(1, done),
        "right": hits / max(1, done),
    }
    (out / MANIFEST).unlink(missing_ok=True)  # first: an older one would vouch for arrays of two teachings
    for name, array in ((ROWS, rows), (SHARES, shares)):
        # Beside, and then into its place: a student may have the older ones open.
        with replacing(out / name) as temporary, temporary.open("wb") as file:
            np.save(file, array)
    write_whole(out / MANIFEST, json.dumps(manifest, indent=1) + "\n")  # last: without it nothing is there
    kept, right = manifest["kept"], manifest["right"]
    say(f"{done:,} questions: the first {top} items have {kept:.1%} of the softmax, the very first is right in {right:.1%}")
    return manifest


def _scores(checkpoint: Checkpoint | EncoderCheckpoint, task: Task) -> Iterator[Tensor]:
    """Scores (n, N) of the training questions, some at a time, in order; every net in blocks of the same size."""
    if isinstance(checkpoint, Checkpoint):
        return score_blocks(checkpoint.net, task.inputs, task.seq, task.split, task.train_queries)
    return encoder_scores(checkpoint.net, task.seq, task.train_queries, int(checkpoint.settings["model"]["length"]))


def _mean_softmax(blocks: Sequence[Tensor], task: Task, part: slice, temperature: float) -> Tensor:
    """(n, N); what lists leave out has no share, so that a student who leaves it out of its softmax is asked nothing of it."""
    mask = None
    if task.split.filter_seen:
        asked = select(task.train_queries, np.arange(part.start, part.stop))
        mask = seen_of(task.seq, asked, blocks[0].device).mask(slice(None)).bool()
        mask &= ~mask.all(1, keepdim=True)  # who has had everything is told of everything
    shares = []
    for scores in blocks:
        scores = scores / temperature
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        shares.append(torch.softmax(scores, 1))
    return torch.stack(shares).mean(0)
