"""The held-out part as a script for a client: histories to load, questions to ask, events to send, in live order."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from model.assess import known_before, load_run
from model.data.sequences import NUMBERS, Sequences
from model.errors import TrainerError
from model.replay import live_schedule
from model.task import Task

K = 20


def write_rehearsal(run: Path, data: Path, out: Path) -> dict[str, Any]:
    """Write meta.json, histories.jsonl, steps.jsonl and titles.json into `out`, and return the meta data.

    Only items of the vocabulary have rows, so events of other items are written by their own names from the data set.

    Raises:
        TrainerError: run or data cannot be used, or the protocol has no time to replay in.
    """
    _, task = load_run(run, data)
    seq, split = task.seq, task.split
    if split.protocol == "loo":
        raise TrainerError(f"{data}: leave-one-out has no common time; a rehearsal needs the time or basket protocol")
    known = known_before(task, split.cut_ms)
    wire = _Wire(seq, task)
    out.mkdir(parents=True, exist_ok=True)
    steps = live_schedule(seq, split.test, known)
    users = sorted({int(split.test.user[s[1]]) if s[0] == "query" else int(wire.user[s[1]]) for s in steps})
    with (out / "histories.jsonl").open("w", encoding="utf-8") as file:
        for user in users:
            rows = range(int(seq.offsets[user]), int(known[user]))
            line = {
                "user_id": seq.user_ids[user],
                "attributes": wire.attributes(user),
                "events": [wire.event(row) for row in rows],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    sent = 0
    with (out / "steps.jsonl").open("w", encoding="utf-8") as file:
        for step in steps:
            if step[0] == "query":
                q = step[1]
                platform = int(seq.platform[split.test.position[q]])
                line = {
                    "query": {
                        "platform": seq.platforms[platform - 1] if platform else None,
                        "user_id": seq.user_ids[int(split.test.user[q])],
                        "as_of": int(split.test.as_of[q]),
                        "targets": [seq.item_ids[row] for row in split.test.targets(q).tolist()],
                    }
                }
            else:
                sent += step[2] - step[1]
                line = {
                    "events": [
                        {"user_id": seq.user_ids[int(wire.user[row])], "event_id": f"replay-{row}"} | wire.event(row)
                        for row in range(step[1], step[2])
                    ]
                }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    titles = dict(zip(seq.item_ids, task.items.get_column("title").to_list(), strict=True))
    (out / "titles.json").write_text(json.dumps(titles, ensure_ascii=False), encoding="utf-8")
    meta = {
        "dataset": task.data["name"],
        "k": K,
        "cut_ms": split.cut_ms,
        "users": len(users),
        "queries": len(split.test),
        "events": sent,
    }
    (out / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return meta


class _Wire:
    """Rows of the sequences as events of POST /v1/events."""

    def __init__(self, seq: Sequences, task: Task) -> None:
        self.seq = seq
        self.user = seq.user
        self.item_of_row = task.item_of_row

    def attributes(self, user: int) -> dict[str, str]:
        seq = self.seq
        chosen = seq.attributes[user].tolist()
        return {
            name: values[index - 1]
            for name, values, index in zip(seq.attribute_names, seq.attribute_values, chosen, strict=True)
            if index
        }

    def event(self, row: int) -> dict[str, Any]:
        seq = self.seq
        event: dict[str, Any] = {"type": seq.event_types[seq.type[row]], "timestamp": int(seq.time[row])}
        item = self.item_of_row[row]
        if item is not None:
            event["item_id"] = item
        numbers = zip(NUMBERS, seq.numbers[row].tolist(), strict=True)
        event |= {name: number for name, number in numbers if not math.isnan(number)}
        if seq.platform[row]:
            event["platform"] = seq.platforms[seq.platform[row] - 1]
        if row in seq.text:
            event["text"] = seq.text[row]
        event["basket_id"] = f"{self.user[row]}-{seq.basket[row]}"
        return event
