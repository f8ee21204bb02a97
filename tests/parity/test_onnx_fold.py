"""I1 between PyTorch, the graphs in the service's own sessions, and the stored state: trained weights, real item keys."""

import numpy as np
import pytest
import torch
from folds import assert_same_state, initial, some_events, step_through
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.state.codec import Header
from model.export.verify import run_interest

TOLERANCE = 1e-4
GAP = 2e-4
AS_OF = 1_310_000_000_000
HEADER = Header(b"epoch-01", 0, 0, 0)
few = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def events_of(trained, catalogue, users, length, seed=0):
    """Random events with the keys that the items have in the service."""
    batch = some_events(trained.net, users, length, trained.matrix, seed)
    keys = torch.as_tensor(catalogue.keys)[(batch.item_key - 1).clamp(min=0)]
    return batch._replace(item_key=torch.where(batch.item_key != 0, keys, 0))


def feeds(events):
    return {name: part.numpy() for name, part in events._asdict().items() if part is not None}


def arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


def after(outputs):
    return {name.removesuffix("_out"): array for name, array in outputs.items()}


def tensors(state):
    return {name: torch.as_tensor(array) for name, array in state.items()}


def scored(runtime, catalogue, interest, k):
    """Rows and scores of one user's k best items from the outputs of interest.onnx, or from the net's own."""
    feeds = interest | {
        "item_matrix": runtime.bundle.vectors,
        "item_bias": runtime.bundle.bias,
        **runtime.of_popularity(runtime.bundle.popularity.astype(np.float32)),
        "bias": np.zeros((1, len(catalogue)), np.float32),
        "repeat_rows": catalogue.rows_of_keys(interest["repeat_keys"]),
        "k": np.asarray([k]),
    }
    best = runtime.score(feeds)
    return best["rows"][0], best["scores"][0]


def assert_same_top_20(trained, runtime, catalogue, of_torch, stored):
    as_of = np.asarray([AS_OF])
    wanted = run_interest(trained.net, arrays(of_torch), as_of)
    found = runtime.interest(stored | {"as_of": as_of, "platform": np.zeros(1, np.int64)})
    assert np.abs(wanted["interests"] - found["interests"]).max() <= TOLERANCE
    every_row, every_score = scored(runtime, catalogue, wanted, len(catalogue))
    scores = every_score[np.argsort(every_row)]
    rows, values = scored(runtime, catalogue, found, 20)
    assert len(set(rows.tolist())) == 20
    assert np.abs(scores[rows] - values).max() <= GAP
    # Place by place, the item that stands there may only be one whose score by torch ties with the one that should.
    assert np.abs(scores[rows] - every_score[:20]).max() < GAP


def test_the_bundle_holds_the_item_vectors_of_the_net(trained, runtime):
    assert np.array_equal(runtime.bundle.vectors, trained.matrix.numpy())
    assert np.array_equal(runtime.bundle.bias, trained.bias.numpy())


@given(st.data())
@few
def test_every_graph_says_what_the_net_says(trained, runtime, catalogue, data):
    net = trained.net
    lengths = data.draw(st.lists(st.integers(0, 30), min_size=1, max_size=4))
    padding, seed = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3))
    users, width = len(lengths), max(lengths) + padding + 1
    events = events_of(trained, catalogue, users, width, seed)
    rows = np.asarray([[user % (size + 1) for size in net.config.attribute_sizes] for user in range(users)], np.int64)
    start = initial(net, users)
    opened = after(runtime.initial({"attributes": rows.reshape(users, -1)}))
    assert_same_state(start, tensors(opened), 1e-6)
    valid = torch.arange(width) < torch.tensor(lengths)[:, None]
    encoded = net.encode(events, valid, start)
    found = after(runtime.encode(opened | feeds(events) | {"valid": valid.numpy()}))
    assert_same_state(encoded, tensors(found), TOLERANCE)
    one = events.along(-1)
    stepped = net.step(one, encoded)
    assert_same_state(stepped, tensors(after(runtime.step(arrays(encoded) | feeds(one)))), TOLERANCE)
    as_of = torch.full((users,), AS_OF)
    platform = torch.arange(users) % (net.config.platforms + 1)
    readout, attention = net.interest(stepped, as_of, platform)
    asked = runtime.interest(arrays(stepped) | {"as_of": as_of.numpy(), "platform": platform.numpy()})
    wanted = {"interests": readout.interests, "attention": attention, "popularity_weight": readout.popularity_weight}
    for name, tensor in wanted.items():
        assert np.abs(asked[name] - tensor.numpy()).max() <= TOLERANCE, name
    assert np.array_equal(asked["repeat_keys"], stepped["repeat_key"].numpy())
    repeats = net.repeat_scores(stepped, readout.context, as_of).numpy()
    assert np.abs(asked["repeat_scores"] - repeats).max() <= TOLERANCE


@pytest.mark.parametrize("seed", range(4))
def test_folding_through_stored_bytes_after_every_event_gives_the_state_of_the_whole(trained, runtime, catalogue, codec, seed):
    length = 60 + 30 * seed
    events = events_of(trained, catalogue, 1, length, seed)
    whole = trained.net.encode(events, torch.ones(1, length, dtype=torch.bool), initial(trained.net, 1))
    state = after(runtime.initial({"attributes": np.zeros((1, len(trained.net.config.attribute_sizes)), np.int64)}))
    for t in range(length):
        _, state = codec.unpack_many(codec.pack_many([HEADER], state))
        state = after(runtime.step(state | feeds(events.along(t))))
    assert_same_state(whole, tensors(state), TOLERANCE)
    assert_same_state(whole, step_through(trained.net, events, initial(trained.net, 1))[-1], TOLERANCE)
    assert_same_top_20(trained, runtime, catalogue, whole, state)


def test_folding_one_user_alone_or_among_others_is_the_same(trained, runtime, catalogue):
    events = events_of(trained, catalogue, 5, 40)
    start = after(runtime.initial({"attributes": np.zeros((5, len(trained.net.config.attribute_sizes)), np.int64)}))
    valid = np.ones((5, 40), bool)
    together = after(runtime.encode(start | feeds(events) | {"valid": valid}))
    only = {name: array[2:3] for name, array in (start | feeds(events) | {"valid": valid}).items()}
    alone = after(runtime.encode(only))
    assert_same_state(tensors(alone), {name: tensor[2:3] for name, tensor in tensors(together).items()}, 1e-5)


@pytest.mark.parametrize("whose", ["random", "real"])
def test_twelve_thousand_events_fold_to_the_same_state_and_list_in_torch_in_onnx_and_stored(
    trained, runtime, catalogue, codec, whose, request
):
    if whose == "random":
        events = events_of(trained, catalogue, 1, 12_000)
    else:
        events = longest_customer(trained, catalogue, request.getfixturevalue("shared_data")("online-retail"))
    length = events.time.shape[1]
    assert length >= 12_000
    state = initial(trained.net, 1)
    for start in range(0, length, 512):
        part = events.along(slice(start, start + 512))
        state = trained.net.encode(part, torch.ones_like(part.time, dtype=torch.bool), state)
    none = np.zeros((1, len(trained.net.config.attribute_sizes)), np.int64)
    stored = chunked = after(runtime.initial({"attributes": none}))
    columns = feeds(events)
    for t in range(length):
        stored = after(runtime.step(stored | {name: column[:, t] for name, column in columns.items()}))
        _, stored = codec.unpack_many(codec.pack_many([HEADER], stored))
    for start in range(0, length, 500):
        part = {name: column[:, start : start + 500] for name, column in columns.items()}
        chunked = after(runtime.encode(chunked | part | {"valid": np.ones(part["time"].shape, bool)}))
    for found in (stored, chunked):
        assert_same_state(state, tensors(found), TOLERANCE)
        assert_same_top_20(trained, runtime, catalogue, state, found)


def longest_customer(trained, catalogue, folder):
    """Online Retail's longest customer as this model reads it: other shop, same event types, its 200 favourites for our items."""
    from model.data.importers.online_retail import read
    from model.data.sequences import item_key

    rows = read(folder).events
    longest = rows.group_by("user_id").len().sort("len", descending=True).get_column("user_id")[0]
    rows = rows.filter(rows.get_column("user_id") == longest)
    ids = rows.get_column("item_id").to_list()
    favourites = rows.group_by("item_id").len().sort("len", "item_id", descending=True).get_column("item_id")[:200].to_list()
    ours = {item: row % len(catalogue) for row, item in enumerate(favourites)}
    item = torch.tensor([ours.get(each, -1) for each in ids])
    keys = [catalogue.keys[ours[each]] if each in ours else item_key(each) for each in ids]
    kinds = {"purchase": 0, "cancellation": 3}
    numbers = torch.tensor([[float("nan"), q, p] for q, p in rows.select("quantity", "price").rows()])
    random = some_events(trained.net, 1, len(ids), trained.matrix)
    return random._replace(
        item_vector=(trained.matrix[item.clamp(min=0)] * (item >= 0)[:, None])[None],
        item_known=(item >= 0)[None],
        item_key=torch.tensor(np.asarray(keys))[None],
        event_type=torch.tensor([kinds[kind] for kind in rows.get_column("type")])[None],
        platform=torch.zeros(1, len(ids), dtype=torch.int64),
        numbers=numbers[None],
        time=torch.tensor(rows.get_column("timestamp").to_list())[None],
        text=torch.zeros_like(random.text),
    )


def test_empty_slots_at_the_end_can_be_left_out_of_a_readout(trained, runtime, catalogue):
    users, length = 3, 9
    state = trained.net.encode(
        events_of(trained, catalogue, users, length), torch.ones(users, length, dtype=torch.bool), initial(trained.net, users)
    )
    assert (state["repeat_key"][:, length:] == 0).all()
    asked = {"as_of": np.full(users, AS_OF), "platform": np.zeros(users, np.int64)}
    whole = runtime.interest(arrays(state) | asked)
    short = {name: array[:, :length] if name.startswith("repeat_") else array for name, array in arrays(state).items()}
    for name, array in runtime.interest(short | asked).items():
        expected = whole[name][:, :length] if name in ("repeat_keys", "repeat_scores") else whole[name]
        assert np.abs(array - expected).max() <= 1e-5, name
    assert (whole["repeat_scores"][:, length:] == 0).all()
