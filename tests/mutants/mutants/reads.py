"""I3, I7: what a list reflects, and how long it is."""

from mutants.mutant import Mutant

LOAD_COMMIT = "tests/integration/state/test_load_commit.py::"
API = "tests/integration/api/test_recommendations_api.py::"

MUTANTS = [
    Mutant(
        name="held state of another server",
        invariant="I3",
        broken="A state in hand is offered to whichever Redis answers, although another one may have less of what it is of.",
        file="app/fold/users.py",
        original="self._store.load(tenant, self._model_id, users, offered, _MOST_EVENTS, generation)",
        replacement="self._store.load(tenant, self._model_id, users, offered, _MOST_EVENTS)",
        killed_by="tests/integration/fold/test_users.py::"
        "test_what_a_worker_holds_is_not_used_if_another_server_answers_than_before",
    ),
    Mutant(
        name="connections to a server that was replaced",
        invariant="I3",
        broken="A master that has become a replica is asked on, although its address leads to its successor by now.",
        file="app/state/transport.py",
        original="                if wire.takes_no_writes:\n",
        replacement="                if False:\n",
        killed_by="tests/integration/state/test_successor.py"
        "::test_after_one_refused_write_everybody_is_asked_at_the_successor[redis]",
    ),
    Mutant(
        name="events of another worker skipped",
        invariant="I3",
        broken="The background fold goes on with the events of its own worker, leaving out those of others in between.",
        file="app/ingest/advance.py",
        original="                if behind <= len(dirty.events):\n",
        replacement="                if True:\n",
        killed_by="tests/unit/app/test_advance.py::test_a_state_that_is_further_behind_than_what_is_known_is_not_folded_on",
    ),
    Mutant(
        name="state without its tail",
        invariant="I3",
        broken="A read answers from the stored state and does not fold what came after it.",
        file="app/fold/users.py",
        original="if user.tail_start == user.meta.appended and blob is not None:",
        replacement="if blob is not None:",
        killed_by=API + "test_every_answer_reflects_every_acknowledged_event_without_a_background_fold",
    ),
    Mutant(
        name="held state of another epoch",
        invariant="I3",
        broken="A worker goes on with a state that it holds, although its user was merged, erased or rewritten since.",
        file="app/state/lua/load.lua",
        original="local held = ARGV[2] == meta[2] and tonumber(ARGV[3])",
        replacement="local held = ARGV[2] ~= '' and tonumber(ARGV[3])",
        killed_by=LOAD_COMMIT + "test_a_state_that_the_caller_holds_is_not_sent_again",
    ),
    Mutant(
        name="held events of another server",
        invariant="I3",
        broken="The background fold goes on with what it knows, although another Redis answers than before, which may have less.",
        file="app/ingest/advance.py",
        original="if dirty.events is None or dirty.generation != self._users.generation:",
        replacement="if dirty.events is None:",
        killed_by="tests/unit/app/test_advance.py::test_what_another_server_had_is_asked_for_again",
    ),
    Mutant(
        name="beginning of a long tail",
        invariant="I3",
        broken="Of a tail longer than one round trip takes, the last events are folded and the ones before them never.",
        file="app/state/lua/load.lua",
        original="and start - appended + most - 1 or -1\n  tail = redis.call('LRANGE', KEYS[1], start - appended, stop)",
        replacement="and -most or start - appended\n  tail = redis.call('LRANGE', KEYS[1], stop, -1)",
        killed_by=LOAD_COMMIT + "test_a_long_tail_comes_in_parts",
    ),
    Mutant(
        name="k of a neighbour",
        invariant="I7",
        broken="All questions of a batch get as many items as the first one wants.",
        file="app/recommend/score.py",
        original="most = min(max(question.k for question in questions), count)",
        replacement="most = min(questions[0].k, count)",
        killed_by=API + "test_a_list_is_the_same_whatever_else_is_asked_at_that_moment",
    ),
]
