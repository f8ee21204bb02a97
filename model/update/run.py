"""An update from beginning to end: read -> cut -> learn -> judge -> export; whatever fails leaves everything as it was."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from model.checkpoint import Checkpoint
from model.export.bundle import Exported
from model.inputs import Inputs
from model.labels import item_labels
from model.publish import check_destination, publish_task
from model.rounding import with_stored_weights
from model.settings import UpdateSettings
from model.task import event_text
from model.text import TextEncoder
from model.update.gate import Judgement, check, judge
from model.update.learn import Learned, UpdateTask, learn, train_settings
from model.update.newer import Newer, features_of, known_by_old, newer, read_events
from model.update.origin import Origin, read_origin
from model.update.windows import Windows, draw_windows


@dataclass(frozen=True)
class Updated:
    """A finished update.

    Attributes:
        new_events, new_items: since the bundle before, held-out ones included. left_out: events of types unknown to the model.
        seconds: by stage, in order.
    """

    exported: Exported
    learned: Learned
    judgement: Judgement
    new_events: int
    new_items: int
    left_out: int
    seconds: dict[str, float]


@dataclass(frozen=True)
class Refreshed:
    """A net that has learned what is new, not yet judged, with all that judging and exporting need."""

    origin: Origin
    newer: Newer
    task: UpdateTask
    checkpoint: Checkpoint
    learned: Learned
    encoder: TextEncoder | None
    seconds: dict[str, float]


def update(
    bundle: Path,
    events: Path,
    out: Path | None,
    settings: UpdateSettings,
    run: Path | None = None,
    mapping: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Updated:
    """Refresh a bundle's model by the events since, and publish it if it is not worse on the newest of them.

    Args:
        bundle: the running one. events: an archive, or a folder that `prepare` wrote, with old events and new.
        out: the folder of bundles; None is the one that the bundle lies in.
        run: where the bundle's checkpoint is, if not beside it. mapping: as of `read_events`.
        say: told of every stage, in a line.

    Raises:
        TrainerError: something does not fit, too little is new, training failed, or the updated model is worse; nothing is
            published, and `current` points where it did.
    """
    origin = read_origin(bundle, run)
    out = out or origin.folder.parent
    check_destination(out)
    refreshed = refresh(origin, events, settings, mapping, say)
    began = time.monotonic()
    judgement = judged(refreshed)
    say(judgement.line())
    check(judgement, settings.margin)
    seconds = refreshed.seconds | {"gate": time.monotonic() - began}
    began = time.monotonic()
    split, checkpoint = refreshed.newer.split, refreshed.checkpoint
    protocol = f"{split.protocol}, newest events at the update"
    metrics = [
        {"protocol": protocol, "name": f"ndcg@{judgement.k}", "value": judgement.after},
        {"protocol": protocol, "name": f"ndcg@{judgement.k}", "value": judgement.before, "model": origin.model_id},
    ]
    ends, stored = refreshed.newer.seq.offsets[1:], (origin.item_vectors, origin.weights)
    exported = publish_task(checkpoint, refreshed.task, ends, out, metrics, refreshed.encoder, *stored, origin.cold)
    seconds["export"] = time.monotonic() - began
    return Updated(
        exported,
        refreshed.learned,
        judgement,
        int(refreshed.newer.new_events.sum()),
        refreshed.newer.seq.items - refreshed.newer.old_items,
        refreshed.newer.left_out,
        seconds,
    )


def refresh(
    origin: Origin,
    events: Path,
    settings: UpdateSettings,
    mapping: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Refreshed:
    """Everything up to the gate; arguments and errors as of `update`."""
    began = time.monotonic()
    found = newer(read_events(events, origin, mapping), origin, settings.holdout)
    fresh = found.seq.items - found.old_items
    say(
        f"{int(found.new_events.sum()):,} of {len(found.seq.item):,} events are new, and {fresh:,} of {found.seq.items:,} items; "
        f"{len(found.split.valid):,} questions to learn from, {len(found.split.test):,} to judge by"
    )
    queries = found.learnable
    train = train_settings(origin.checkpoint, settings)
    windows = draw_windows(
        found.seq,
        queries,
        queries.as_of >= found.since_ms,
        settings.replay,
        train.chunk,
        settings.history,
        np.random.default_rng(train.seed),
    )
    task, encoder = _task(found, origin, windows)
    read = time.monotonic()
    learned = learn(task, origin.checkpoint, train, settings.refresh, windows)
    checkpoint = replace(
        origin.checkpoint,
        net=with_stored_weights(learned.net, origin.weights),
        item_ids=found.seq.item_ids,
        data=origin.checkpoint.data | {"fingerprint": found.fingerprint},
        item_text=None if task.item_text is None else torch.as_tensor(task.item_text),
        item_features=None if task.item_features is None else torch.as_tensor(task.item_features),
        known_until_ms=found.split.cut_ms,
    )
    return Refreshed(origin, found, task, checkpoint, learned, encoder, {"reading": read - began} | learned.seconds)


def judged(refreshed: Refreshed) -> Judgement:
    """The gate's comparison."""
    origin, task = refreshed.origin, refreshed.task
    inputs = task.inputs
    old = known_by_old(refreshed.newer)
    rows = slice(0, refreshed.newer.old_items)
    before = replace(
        inputs,
        item=torch.as_tensor(old.item, dtype=torch.int64),
        item_text=None if inputs.item_text is None else inputs.item_text[rows],
        item_features=None if inputs.item_features is None else inputs.item_features[rows],
    )
    after = refreshed.checkpoint, inputs
    return judge(refreshed.newer, (origin.checkpoint, before), after, refreshed.learned.memories, origin.item_vectors)


def _task(found: Newer, origin: Origin, windows: Windows) -> tuple[UpdateTask, TextEncoder | None]:
    checkpoint, seq = origin.checkpoint, found.seq
    features = features_of(found, origin)
    fresh = seq.items - found.old_items
    name = checkpoint.settings["data"]["text_encoder"]
    encoder = TextEncoder(name) if name else None
    item_text, said = None, None
    if encoder is not None and checkpoint.item_text is not None:
        titles = found.items.get_column("title").to_list()[found.old_items :]
        # The old texts stay as training saw them: what has been learned of them was learned of those.
        item_text = np.concatenate([checkpoint.item_text.numpy(), encoder.embed([title or "" for title in titles])])
        if seq.text:
            # Only what is read: embedding all that was ever searched for could take longer than everything else.
            read = set(windows.user.tolist()) | set(found.split.test.user.tolist())
            user = seq.user
            said = event_text(replace(seq, text={row: text for row, text in seq.text.items() if int(user[row]) in read}), encoder)
    config = replace(checkpoint.net.config, items=found.old_items + fresh)
    task = UpdateTask(
        seq,
        found.split,
        windows.queries,
        Inputs.of(seq, item_text, said, features),
        found.items,
        [],
        item_text,
        features,
        list(origin.features),
        dict(origin.vectors),
        checkpoint.data | {"fingerprint": found.fingerprint},
        bool(config.repeats),
        None if checkpoint.settings["data"].get("items_only") else item_labels(found.items, item_text),
        config,
    )
    return task, encoder
