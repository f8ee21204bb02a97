"""Golden vectors: inputs and what the torch net makes of them, for the service to replay before it says ready."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from model.export.graphs import ExportedGraph
from model.nets import EventBatch, Longwave, State
from model.nets.portrait import drift, label_weights
from model.nets.readout import add_repeats, item_scores, recency
from model.nets.topk import BLOCK

Arrays = dict[str, np.ndarray]
START_MS = 1_300_000_000_000


def random_events(net: Longwave, users: int, events: int, item_matrix: Tensor, seed: int) -> EventBatch:
    """Events (B, T) that meet every case: unknown and absent items, missing numbers, late events, repeats."""
    config = net.config
    rng = np.random.default_rng(seed)
    shape = (users, events)
    rows = torch.as_tensor(rng.integers(0, max(2, len(item_matrix) // 2), shape) % len(item_matrix))
    known = torch.as_tensor(rng.random(shape) < 0.9)
    key = torch.where(torch.as_tensor(rng.random(shape) < 0.95), rows + 1, torch.zeros_like(rows))
    known &= key != 0
    numbers = rng.lognormal(1.0, 1.0, (*shape, 3)).astype(np.float32)
    numbers[rng.random(numbers.shape) < 0.3] = np.nan
    gaps = rng.choice([0, 1_000, 3_600_000, 86_400_000, -7_200_000], shape)
    text = None
    if config.text_width:
        vectors = rng.normal(size=(*shape, config.text_width)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        text = torch.as_tensor(vectors * (rng.random(shape) < 0.2)[..., None].astype(np.float32))
    return EventBatch(
        item_matrix[rows] * known[..., None],
        known,
        key,
        torch.as_tensor(rng.integers(0, config.event_types, shape)),
        torch.as_tensor(rng.integers(0, config.platforms + 1, shape)),
        torch.as_tensor(numbers),
        torch.as_tensor(START_MS + gaps.cumsum(1)),
        text,
    )


@torch.no_grad()
def golden_vectors(
    net: Longwave, item_matrix: Tensor, item_bias: Tensor, graphs: dict[str, ExportedGraph], seed: int = 0
) -> Arrays:
    """`<graph>/in/<tensor>` and `<graph>/out/<tensor>` for every graph; the outputs come from torch, never from ONNX."""
    config = net.config
    users, events = 3, 12
    generator = torch.Generator().manual_seed(seed)
    attributes = (
        torch.stack([torch.randint(0, size + 1, (users,), generator=generator) for size in config.attribute_sizes], 1)
        if config.attribute_sizes
        else torch.zeros(users, 0, dtype=torch.int64)
    )
    batch = random_events(net, users, events, item_matrix, seed)
    valid = torch.arange(events) < torch.tensor([[events], [events // 2], [0]])
    initial = net.initial_state(attributes)
    encoded = net.encode(batch, valid, initial)
    one = batch.along(-1)
    stepped = net.step(one, encoded)
    as_of = stepped["clock"][:, 0] + 86_400_000
    platform = torch.arange(users) % (config.platforms + 1)
    readout, attention = net.interest(stepped, as_of, platform)
    out: Arrays = {}

    def put(graph: str, inputs: Mapping[str, Tensor | None], outputs: Mapping[str, Tensor]) -> None:
        out.update({f"{graph}/in/{name}": t.numpy() for name, t in inputs.items() if t is not None})
        out.update({f"{graph}/out/{name}": t.numpy() for name, t in outputs.items()})

    put("initial", {"attributes": attributes}, _after(initial))
    put("encode", initial | batch._asdict() | {"valid": valid}, _after(encoded))
    put("step", encoded | one._asdict(), _after(stepped))
    interest = {"interests": readout.interests, "attention": attention, "popularity_weight": readout.popularity_weight}
    rows = repeats = None
    if net.repeats is not None:
        repeats = net.repeat_scores(stepped, readout.context, as_of)
        keys = stepped["repeat_key"]
        rows = torch.where(keys > 0, keys - 1, torch.full_like(keys, -1))
        interest |= {"repeat_interest": readout.repeat_interest, "repeat_keys": keys, "repeat_scores": repeats}
    put("interest", stepped | {"as_of": as_of, "platform": platform}, interest)
    count = min(len(item_matrix), 200)
    matrix, bias = item_matrix[:count], item_bias[:count]
    popularity = torch.rand(count, len(config.popularity_half_lives_s), generator=generator) * 20
    scores = item_scores(readout.interests, matrix, bias, popularity, readout.popularity_weight)
    mask = torch.where(torch.rand(1, count, generator=generator) < 0.1, -torch.inf, 0.0)
    scored: dict[str, Tensor | None] = {
        "interests": readout.interests, "item_matrix": matrix, "item_bias": bias, "recent": recency(popularity),
        "popularity_weight": readout.popularity_weight, "bias": mask, "k": torch.tensor([min(10, count)]),
    }  # fmt: skip
    if rows is not None and repeats is not None:
        rows = torch.where(rows < count, rows, torch.full_like(rows, -1))
        scores = add_repeats(scores, rows, repeats, readout.repeat_interest, matrix)
        scored |= {"repeat_rows": rows, "repeat_scores": repeats, "repeat_interest": readout.repeat_interest}
    about = torch.rand(count, 3, generator=generator)
    known = {"leaning": stepped["leaning"], "item_labels": about, "popularity": popularity}
    asked = {t.name: (scored | known)[t.name] for t in graphs["profile"].inputs}
    put("profile", asked, {"drift": drift(stepped["leaning"]), "labels": label_weights(scores, about)})
    best = torch.sort(scores + mask, dim=1, descending=True, stable=True)
    put("recent", {"popularity": popularity}, {"recent": recency(popularity)})
    first = {"scores": best.values[:, : min(10, count)], "rows": best.indices[:, : min(10, count)]}
    put("score", scored, first)
    put("scan", _in_blocks(scored, count), first)
    if "item" in graphs:
        content = {t.name: torch.rand(4, int(t.shape[1]), generator=generator) - 0.5 for t in graphs["item"].inputs}
        if net.item.scaled is not None:  # numbers such as items have: of others all would be cut off at one end
            content["features"] = net.item.scaled.undone(content["features"])
        vector, item_bias = net.item.unseen(content.get("text"), content.get("features"))
        put("item", dict(content), {"vector": vector, "bias": item_bias})
    return out


def _in_blocks(scored: Mapping[str, Tensor | None], count: int) -> dict[str, Tensor | None]:
    """The same question with rows behind the items, which are none, so that they fill blocks."""
    missing = -count % BLOCK
    wider = dict(scored)
    for name, beyond in (("item_matrix", 0.0), ("item_bias", -torch.inf), ("recent", 0.0)):
        tensor = scored[name]
        assert tensor is not None
        wider[name] = torch.cat([tensor, torch.full((missing, *tensor.shape[1:]), beyond)])
    bias = scored["bias"]
    assert bias is not None
    return wider | {"bias": torch.cat([bias, torch.zeros(len(bias), missing)], 1)}


def _after(state: State) -> dict[str, Tensor]:
    return {f"{name}_out": tensor for name, tensor in state.items()}
