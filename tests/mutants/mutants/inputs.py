"""I10: hostile input."""

from mutants.mutant import Mutant

INGEST = "tests/integration/ingest/test_ingest.py::"

MUTANTS = [
    Mutant(
        name="damage of a neighbour",
        invariant="I10",
        broken="One user whose key in Redis is of another type takes the lists of all who are asked for together.",
        file="app/state/redis.py",
        original="            raise OneOfManyError(error.detail) from error\n",
        replacement="            raise\n",
        killed_by="tests/integration/api/test_damaged_users.py"
        "::test_questions_for_a_damaged_user_say_what_is_wrong_and_lists_fall_back[seq]",
    ),
    Mutant(
        name="no event among events",
        invariant="I10",
        broken="An element of a sequence that is no event is an error of the service, not of what is stored.",
        file="app/state/events.py",
        original="UNREADABLE: Final = (ValueError, RecursionError)",
        replacement="UNREADABLE: Final = (RecursionError,)",
        killed_by="tests/integration/api/test_damaged_users.py"
        "::test_questions_for_a_damaged_user_say_what_is_wrong_and_lists_fall_back[no event]",
    ),
    Mutant(
        name="damage behind a state of a neighbour",
        invariant="I10",
        broken="An event that cannot be read takes the lists of all who are asked for together, where rules read the sequence.",
        file="app/recommend/pipeline.py",
        original="                raise OneOfManyError(error.detail) from error\n",
        replacement="                raise\n",
        killed_by="tests/integration/api/test_damaged_users.py"
        "::test_a_damaged_event_that_the_state_has_behind_it_harms_no_neighbour",
    ),
    Mutant(
        name="any number of events",
        invariant="I10",
        broken="A request may have any number of events.",
        file="app/ingest/pipeline.py",
        original="        if len(raw_events) > self._max_events:\n",
        replacement="        if False:\n",
        killed_by=INGEST + "test_a_huge_batch_changes_nothing",
    ),
    Mutant(
        name="ids of any length",
        invariant="I10",
        broken="An id may have any length.",
        file="app/ingest/schema.py",
        original="str, Field(min_length=1, max_length=MAX_ID_LENGTH, pattern=",
        replacement="str, Field(min_length=1, pattern=",
        killed_by="tests/unit/ingest/test_validate_events.py::test_ids_are_bounded_strings_without_control_characters",
    ),
    Mutant(
        name="a body of any size",
        invariant="I10",
        broken="A body without a length in its header is read to its end, however long.",
        file="app/api/body.py",
        original="            if size > max_bytes:\n",
        replacement="            if False:\n",
        killed_by="tests/integration/api/test_events_api.py::test_a_chunked_body_over_the_bound_is_not_read_to_its_end",
    ),
    Mutant(
        name="stored and refused",
        invariant="I10",
        broken="A request that is refused for want of room has been stored.",
        file="app/ingest/pipeline.py",
        original="            await self._room()\n            stored = await self._append(tenant, valid)\n",
        replacement="            stored = await self._append(tenant, valid)\n            await self._room()\n",
        killed_by=INGEST + "test_no_room_means_that_nothing_is_stored",
    ),
    Mutant(
        name="a round trip of any length",
        invariant="I10",
        broken="Requests of many events share one round trip, which cannot end in time.",
        file="app/runtime/batcher.py",
        original="                if batch and weight > self._heaviest:\n",
        replacement="                if False:\n",
        killed_by="tests/unit/app/test_batcher.py::test_a_batch_weighs_no_more_than_it_may_and_the_order_stays",
    ),
    Mutant(
        name="one dead connection fails everybody",
        invariant="I10",
        broken="Whoever waits is failed with a batch whose connection is dead, though Redis answers others.",
        file="app/runtime/batcher.py",
        original="if clock() - began_s < self._patience.away_s or self._is_heard() or",
        replacement="if clock() - began_s < self._patience.away_s or",
        killed_by="tests/integration/ingest/test_bounded_pipelines.py"
        "::test_a_connection_that_is_dead_fails_nobody_but_those_who_were_asked_on_it",
    ),
    Mutant(
        name="waits for ever",
        invariant="I10",
        broken="Who waits in a queue waits until the turn comes, however long that takes.",
        file="app/runtime/batcher.py",
        original="            if since_s < oldest_s:\n",
        replacement="            if False:\n",
        killed_by="tests/unit/app/test_batcher.py::test_who_has_waited_too_long_is_refused_when_the_turn_comes_and_was_not_asked",
    ),
    Mutant(
        name="each finds out alone that Redis hangs",
        invariant="I10",
        broken="While Redis hangs, those who wait are sent to it one batch after the other.",
        file="app/runtime/batcher.py",
        original="if clock() - began_s < self._patience.away_s or",
        replacement="if True or",
        killed_by="tests/unit/app/test_batcher.py::test_storage_that_hangs_while_each_is_asked_alone_is_waited_for_once",
    ),
    Mutant(
        name="errors without a field",
        invariant="I10",
        broken="An error does not say which field it is about.",
        file="app/ingest/validate.py",
        original="    return FieldError(index, field, message[0].lower() + message[1:])",
        replacement='    return FieldError(index, "", message[0].lower() + message[1:])',
        killed_by="tests/unit/ingest/test_validate_events.py::test_text_is_bounded",
    ),
]
