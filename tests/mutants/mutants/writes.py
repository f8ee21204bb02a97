"""I2: nothing is lost and nothing there twice, of what is told and imported."""

from mutants.mutant import Mutant

APPEND = "tests/integration/state/test_append.py::"
FAILURES = "tests/integration/state/test_failures.py::"
LONG_IMPORT = "tests/integration/state/test_long_import.py::"
INGEST = "tests/integration/ingest/test_ingest.py::"

MUTANTS = [
    Mutant(
        name="ids are not remembered",
        invariant="I2",
        broken="An event id is known within its own call alone, so that a retry is stored again.",
        file="app/state/lua/append.lua",
        original="      fresh_ids[#fresh_ids + 1] = id\n",
        replacement="",
        killed_by=APPEND + "test_a_retry_is_stored_once",
    ),
    Mutant(
        name="no log",
        invariant="I2",
        broken="Events are in their user's sequence and not in the event log.",
        file="app/state/lua/append.lua",
        original="for i = 1, #fresh do\n  local event, id, number",
        replacement="for i = 1, 0 do\n  local event, id, number",
        killed_by=APPEND + "test_every_fresh_event_is_in_the_log_of_its_partition_once",
    ),
    Mutant(
        name="late events lost",
        invariant="I2",
        broken="Events that arrive while a merge or an import is worked out are lost.",
        file="app/state/lua/rewrite.lua",
        original="if late > 0 then\n",
        replacement="if false then\n",
        killed_by="tests/integration/state/test_rewrite.py::test_a_writer_who_never_pauses_does_not_keep_a_merge_from_ending",
    ),
    Mutant(
        name="imported again",
        invariant="I2",
        broken="An import takes events once more that the user has by their ids.",
        file="app/state/rewrite.py",
        original="kept_new = _unknown(kept_new, found.ids or EMPTY_RING)",
        replacement="pass",
        killed_by="tests/integration/state/test_rewrite.py::test_an_import_leaves_out_what_the_user_has_by_its_id",
    ),
    Mutant(
        name="imported again in parts",
        invariant="I2",
        broken="What an import has written in one piece is written again by one that writes it in parts.",
        file="app/state/rewrite.py",
        original="            encode_text(whole),\n",
        replacement='                b"",\n',
        killed_by=LONG_IMPORT + "test_one_that_an_earlier_version_did_in_one_piece_is_not_done_again",
    ),
    Mutant(
        name="ids of early parts",
        invariant="I2",
        broken="The first parts of an import push out the ids of what the last one has, too: it is stored twice.",
        file="app/state/rewrite.py",
        original="one and (remembered is None or one in remembered)",
        replacement="one",
        killed_by=LONG_IMPORT + "test_what_was_told_before_is_known_to_the_last_part",
    ),
    Mutant(
        name="imported while told",
        invariant="I2",
        broken="What is told while it is imported is there twice.",
        file="app/state/lua/rewrite.lua",
        original="      if at then return 0 end",
        replacement="",
        killed_by="tests/integration/state/test_rewrite.py::test_what_is_told_while_it_is_imported_is_there_once",
    ),
    Mutant(
        name="idempotency key ignored",
        invariant="I2",
        broken="A request that is sent again with its Idempotency-Key is stored again.",
        file="app/ingest/pipeline.py",
        original="        if idempotency_key is not None:\n",
        replacement="        if False:\n",
        killed_by=INGEST + "test_an_idempotency_key_makes_the_same_request_a_retry_and_nothing_else",
    ),
    Mutant(
        name="acknowledged before it is stored",
        invariant="I2",
        broken="The answer does not wait for what Redis says of the events.",
        file="app/ingest/pipeline.py",
        original="            stored = await self._append(tenant, valid)\n",
        replacement="""\
            import asyncio
            from app.ingest.append import Stored
            asyncio.ensure_future(self._append(tenant, valid)).add_done_callback(lambda done: done.exception())
            stored = Stored([STORED] * len(valid), {}, [])
""",
        killed_by=INGEST + "test_without_redis_nothing_is_acknowledged_and_nobody_told",
    ),
    Mutant(
        name="acknowledged without replicas",
        invariant="I2",
        broken="What the settings demand of replicas is not waited for.",
        file="app/state/redis.py",
        original='await self._run(script("append"), calls, durable=True)',
        replacement='await self._run(script("append"), calls)',
        killed_by=FAILURES + "test_what_no_replica_has_confirmed_is_not_acknowledged_and_known_to_a_retry",
    ),
    Mutant(
        name="whole pipeline again",
        invariant="I2",
        broken="After a restart of Redis in the middle of a call, what did run runs again with what did not.",
        file="app/state/calls.py",
        original="unknown = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]",
        replacement="unknown = list(range(len(replies))) if any(isinstance(reply, NoScriptError) for reply in replies) else []",
        killed_by=FAILURES + "test_only_commands_that_met_unknown_scripts_run_again",
    ),
    Mutant(
        name="sent again unasked",
        invariant="I2",
        broken="A call whose reply was lost is sent again by the store itself, also where no event id tells the two apart.",
        file="app/state/transport.py",
        original="                replies = await wire.ask([*commands, *extra] if extra else commands, timeout_s)\n",
        replacement="""\
                try:
                    replies = await wire.ask([*commands, *extra] if extra else commands, timeout_s)
                except _AWAY:
                    wire = await Wire.open(self._pool.make_connection())
                    replies = await wire.ask([*commands, *extra] if extra else commands, timeout_s)
""",
        killed_by=FAILURES + "test_what_may_have_been_stored_is_never_sent_again_unasked",
    ),
]
