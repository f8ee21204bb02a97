"""I1, I4, I9: a state is the exact fold, at constant cost, and the same again."""

from mutants.mutant import Mutant

APPEND = "tests/integration/state/test_append.py::"
LOAD_COMMIT = "tests/integration/state/test_load_commit.py::"
API = "tests/integration/api/test_recommendations_api.py::"

MUTANTS = [
    Mutant(
        name="last event of a chunk",
        invariant="I1",
        broken="A fold that is cut into chunks leaves out the last event of each.",
        file="app/fold/fold.py",
        original="self._tensors.encode([tail[done : done + CHUNK] for tail in tails if len(tail) > done])",
        replacement="self._tensors.encode([tail[done : done + CHUNK - 1] for tail in tails if len(tail) > done])",
        killed_by="tests/unit/app/test_fold.py::test_every_event_is_in_one_call_and_those_of_a_user_in_order",
    ),
    Mutant(
        name="half precision",
        invariant="I1",
        broken="States are stored with half the bits of their numbers.",
        file="app/state/codec.py",
        original="            tensors[name] = array\n",
        replacement="            tensors[name] = array.astype(np.float16) if array.dtype == np.float32 else array\n",
        killed_by="tests/unit/state/test_codec.py::test_nan_payloads_and_infinities_survive",
    ),
    Mutant(
        name="sequence without bound",
        invariant="I4",
        broken="The sequence in Redis grows with the history.",
        file="app/state/lua/append.lua",
        original="  redis.call('LTRIM', KEYS[1], -max_sequence, -1)\n",
        replacement="",
        killed_by=APPEND + "test_history_drops_the_oldest_event_beyond_its_bound",
    ),
    Mutant(
        name="whole sequence",
        invariant="I4",
        broken="A read takes the whole sequence out of Redis' list and throws away what the state covers.",
        file="app/state/lua/load.lua",
        original="  tail = redis.call('LRANGE', KEYS[1], start - appended, stop)\n",
        replacement="""\
  local all = redis.call('LRANGE', KEYS[1], 0, -1)
  for i = stored + start - appended + 1, stored + stop + 1 do tail[#tail + 1] = all[i] end
""",
        killed_by=LOAD_COMMIT + "test_a_read_takes_from_the_sequence_what_is_new_and_nothing_else",
    ),
    Mutant(
        name="ring without end",
        invariant="I4",
        broken="The memory of event ids grows with the history.",
        file="app/state/lua/append.lua",
        original="    local slot = seen % window\n    local before_end = math.min(#fresh_ids, window - slot)",
        replacement="    local slot = seen\n    local before_end = #fresh_ids",
        killed_by=APPEND + "test_the_window_holds_at_its_default_size_however_often_its_ring_goes_round",
    ),
    Mutant(
        name="log without bound",
        invariant="I4",
        broken="The event log that nobody archives grows without end.",
        file="app/state/lua/append.lua",
        original="local bounded, entry = ARGV[5] ~= '0', nil",
        replacement="local bounded, entry = false, nil",
        killed_by=APPEND + "test_the_log_stays_near_its_bound",
    ),
    Mutant(
        name="ties by chance",
        invariant="I9",
        broken="Of items that are equally popular the one that comes later in the catalogue goes first.",
        file="app/catalogue/popularity.py",
        original="candidates = asked[logs >= np.partition(logs, len(logs) - k)[len(logs) - k]]",
        replacement="candidates = asked[logs >= np.partition(logs, len(logs) - k)[len(logs) - k]][::-1]",
        killed_by="tests/unit/app/test_live_popularity.py::test_the_top_ranks_by_the_shortest_half_life_and_breaks_ties_by_row",
    ),
    Mutant(
        name="popularity of now",
        invariant="I9",
        broken="Popularity is that of the wall clock's moment and not of the one that was asked for.",
        file="app/catalogue/popularity.py",
        original="        second_ms = as_of_ms - as_of_ms % 1000\n",
        replacement="        import time\n        second_ms = int(time.time()) * 1000\n",
        killed_by="tests/unit/app/test_live_popularity.py::test_the_bundles_counts_are_carried_on",
    ),
    Mutant(
        name="as_of ignored",
        invariant="I9",
        broken="The model is told the present and not the moment that was asked for.",
        file="app/recommend/score.py",
        original='tensors["as_of"] = np.asarray([question.as_of_ms for question in questions], np.int64)',
        replacement='tensors["as_of"] = np.asarray([__import__("time").time_ns() // 1_000_000 for _ in questions], np.int64)',
        killed_by=API + "test_as_of_makes_a_request_repeatable",
    ),
    Mutant(
        name="ties of a device",
        invariant="I9",
        broken="Which of several items with the same score are in a list is left to the device.",
        file="app/recommend/segments.py",
        original="            waiting = waiting[(scores[:, -1] > _NOTHING) & (scores[:, k - 1] == scores[:, -1])]",
        replacement="            waiting = waiting[:0]",
        killed_by="tests/unit/app/test_segments.py::test_of_items_of_one_score_the_first_rows_are_listed_whichever_the_device_chose",
    ),
    Mutant(
        name="twice on a device",
        invariant="I9",
        broken="An item that got another vector is found by its old one, too.",
        file="app/recommend/segments.py",
        original="                bias[delta.rows[first:last] - segment.first] = _NOTHING",
        replacement="                pass",
        killed_by="tests/unit/app/test_segments.py::test_an_item_that_got_another_vector_is_listed_once",
    ),
    Mutant(
        name="popularity of a neighbour",
        invariant="I9",
        broken="All questions of a batch get the popularity of the first one's moment.",
        file="app/recommend/score.py",
        original="if all(table is tables[0] for table in tables):",
        replacement="if tables:",
        killed_by=API + "test_a_list_is_the_same_whatever_else_is_asked_at_that_moment",
    ),
]
