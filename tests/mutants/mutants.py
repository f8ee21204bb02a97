"""Ways to break `app/`, each of which one test notices; `test_mutants.py` breaks it and looks. Sorted by invariant."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One way to break an invariant.

    Attributes:
        name: unique, a few words.
        invariant: of docs/design.md.
        broken: what is wrong, as a sentence.
        file: from the root of the checkout.
        original: what must be in the file exactly once.
        killed_by: node id of the test that fails.
    """

    name: str
    invariant: str
    broken: str
    file: str
    original: str
    replacement: str
    killed_by: str


APPEND = "tests/integration/state/test_append.py::"
LOAD_COMMIT = "tests/integration/state/test_load_commit.py::"
FAILURES = "tests/integration/state/test_failures.py::"
IDENTITIES = "tests/integration/state/test_identities.py::"
ERASURES = "tests/integration/state/test_erasures.py::"
LONG_IMPORT = "tests/integration/state/test_long_import.py::"
REVIVED = "tests/integration/state/test_revived.py::"
CROSSING = "tests/integration/state/test_identities_crossing.py::"
ARCHIVER = "tests/integration/archive/test_archiver.py::"
LOG_IDENTITY = "tests/integration/archive/test_log_identity.py::"
EXPIRY = "tests/integration/archive/test_expiry.py::"
HALVES = "tests/integration/archive/test_archived_halves.py::"
INGEST = "tests/integration/ingest/test_ingest.py::"
BACKFILL = "tests/integration/models/test_backfill.py::"
SWAP = "tests/integration/models/test_swap.py::"
API = "tests/integration/api/test_recommendations_api.py::"

EXACT_FOLD = [
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
]

NOTHING_LOST_NOTHING_TWICE = [
    Mutant(
        name="a merge pushes ids out",
        invariant="I2",
        broken="The ids that come with another identity take all the room: a retry of the last event is stored again.",
        file="app/state/ring.py",
        original="zip_longest(reversed(new), reversed(old))",
        replacement="((one,) for one in [*reversed(new), *reversed(old)])",
        killed_by="tests/integration/state/test_rewrite.py::test_a_merge_leaves_the_last_ids_of_both_known",
    ),
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
        name="tombstone ignored",
        invariant="I2",
        broken="A late retry brings an event of before the erasure back.",
        file="app/state/lua/append.lua",
        original="if time <= erased_at then",
        replacement="if false then",
        killed_by=ERASURES + "test_what_happened_before_the_erasure_is_refused_and_what_comes_after_begins_anew",
    ),
    Mutant(
        name="tombstone lowered",
        invariant="I2",
        broken="An erasure that is repeated lets events come back that were dated after the first one.",
        file="app/state/lua/erase.lua",
        original="math.max(tonumber(ARGV[3]), latest, before)",
        replacement="math.max(tonumber(ARGV[3]), latest)",
        killed_by=ERASURES + "test_an_erasure_that_is_repeated_refuses_no_less[1001]",
    ),
    Mutant(
        name="tombstone of one name",
        invariant="I2",
        broken="An event that was dated after the erasure of its user comes back under the name of a merged identity.",
        file="app/state/lua/erase.lua",
        original="'ik', ARGV[5], 'up', upto)",
        replacement="'ik', ARGV[5], 'up', ARGV[3])",
        killed_by=ERASURES + "test_events_dated_after_their_erasure_do_not_come_back_under_any_of_their_names[3-alice]",
    ),
    Mutant(
        name="tombstone of who is on the way",
        invariant="I2",
        broken="An event dated after its erasure comes back under a name that was merged into one that was being merged.",
        file="app/state/erasing.py",
        original="                upto = max(upto, refused_to)\n",
        replacement="",
        killed_by=CROSSING + "test_who_is_merged_into_somebody_who_is_being_merged_is_erased_too",
    ),
    Mutant(
        name="merge that nobody knows of",
        invariant="I2",
        broken="Events of a merged user are written with somebody to whom they do not belong any more, after an erasure.",
        file="app/state/lua/rewrite.lua",
        original="not knows(KEYS[2], ARGV[20], ARGV[21])",
        replacement="false",
        killed_by=IDENTITIES + "test_what_was_read_for_a_merge_is_not_written_after_the_target_was_erased[False]",
    ),
    Mutant(
        name="merge made known too late",
        invariant="I2",
        broken="A merge beside an erasure joins a user with somebody from whom the target was parted.",
        file="app/state/identities.py",
        original='await self._hand_on(tenant, holder, target, way.get(target, b""), {encode_text',
        replacement='await self._hand_on(tenant, holder, "", b"", {encode_text',
        killed_by=CROSSING + "test_a_merge_with_somebody_who_is_parted_from_the_others_meanwhile_is_with_that_name",
    ),
    Mutant(
        name="merge that Redis has lost",
        invariant="I2",
        broken="What a source was told after Redis had lost that it was merged is gone when it is merged again.",
        file="app/state/identities.py",
        original="        await self._set_apart(tenant, holder, source)\n",
        replacement="",
        killed_by=REVIVED + "test_what_a_source_was_told_since_its_merge_was_lost_comes_with_the_next[since0-come0-0]",
    ),
    Mutant(
        name="guess of what was merged",
        invariant="I2",
        broken="Where it cannot be told what a merge of before has brought, what came since is left out of the next.",
        file="app/state/revived.py",
        original="            return None\n",
        replacement="            pass\n",
        killed_by=REVIVED + "test_where_it_cannot_be_told_what_is_new_nothing_is_done[left]",
    ),
    Mutant(
        name="told to who was parted",
        invariant="I2",
        broken="An event that is told beside an erasure is stored with a stranger, and once more when it is sent again.",
        file="app/state/lua/append.lua",
        original="not knows(KEYS[2], ARGV[8], ARGV[9])",
        replacement="false",
        killed_by=CROSSING + "test_what_is_told_beside_an_erasure_is_with_the_name_that_it_was_told_under",
    ),
    Mutant(
        name="history told to who was parted",
        invariant="I2",
        broken="A history that is imported beside an erasure is stored with a stranger.",
        file="app/state/rewrite.py",
        original="guard=(encode_text(origin), merge) if origin else way.guard",
        replacement='guard=(encode_text(origin), merge) if origin else (b"", b"")',
        killed_by=CROSSING + "test_what_is_said_beside_an_erasure_is_with_the_name_that_it_was_said_under",
    ),
    Mutant(
        name="erased who was parted",
        invariant="I2",
        broken="An erasure that was held up takes somebody who has parted from that name, and begun anew.",
        file="app/state/lua/erase.lua",
        original="not knows(KEYS[3], ARGV[6], ARGV[7])",
        replacement="false",
        killed_by=CROSSING + "test_an_erasure_does_not_take_who_has_parted_from_the_name_and_begun_anew",
    ),
    Mutant(
        name="erasure that was cut off, archived",
        invariant="I2",
        broken="The archive gives the events of who was merged into somebody erased back to that one.",
        file="app/archive/compaction.py",
        original="named and kind in (MOVED, SEQUENCE)",
        replacement="named and kind == SEQUENCE",
        killed_by="tests/integration/archive/test_compaction.py"
        "::test_who_was_merged_into_the_erased_does_not_come_back_if_the_erasure_was_cut_off",
    ),
    Mutant(
        name="merge hidden by another",
        invariant="I2",
        broken="An erasure misses an identity of which two merges are known, the later of which came to nothing.",
        file="app/state/lua/marks.lua",
        original="    value = all or value\n",
        replacement="",
        killed_by=CROSSING + "test_a_merge_that_came_to_nothing_hides_no_other",
    ),
    Mutant(
        name="parted before all are forgotten",
        invariant="I2",
        broken="Names are taken for those of a living user while the erasure of them is not done.",
        file="app/state/lua/forget.lua",
        original="'ms', 'e', 'ik', merge",
        replacement="'ms', 'd', 'ik', merge",
        killed_by=CROSSING + "test_who_is_read_while_an_erasure_is_held_up_is_there_whole_or_not_at_all",
    ),
    Mutant(
        name="tombstone restored lower",
        invariant="I2",
        broken="A restored Redis refuses less of an erased user than the one before.",
        file="app/archive/restore.py",
        original="max(arrived_before_ms, arrived_ms), max(gone_before_ms, gone_ms)",
        replacement="max((arrived_before_ms, gone_before_ms), (arrived_ms, gone_ms))",
        killed_by="tests/integration/archive/test_restore.py"
        "::test_the_tombstone_of_an_earlier_erasure_that_reaches_further_is_restored[0]",
    ),
    Mutant(
        name="tombstone of an alias",
        invariant="I2",
        broken="An import brings back what an identity had done before it was erased and merged.",
        file="app/state/rewrite.py",
        original="await way.go_on([-1, found.to, found.merged, found.gone or -1, found.merge or RESTORED])",
        replacement="await way.go_on([-1, found.to, found.merged, -1, found.merge or RESTORED])",
        killed_by=IDENTITIES + "test_an_import_of_what_was_erased_does_not_come_back_by_a_merge",
    ),
    Mutant(
        name="state of the erased",
        invariant="I2",
        broken="A state of an erased user stays, under a model that was registered during the erasure.",
        file="app/state/erasing.py",
        original="        await self._drop_states(tenant, holder, models)\n",
        replacement="",
        killed_by=ERASURES + "test_an_erasure_takes_states_under_a_model_that_is_registered_meanwhile[alice]",
    ),
    Mutant(
        name="alias ignored",
        invariant="I2",
        broken="An event of a merged identity is stored under the name that nobody reads any more.",
        file="app/state/lua/append.lua",
        original="if meta[5] then\n",
        replacement="if false then\n",
        killed_by=IDENTITIES + "test_an_unknown_identity_leads_to_the_target_from_then_on",
    ),
    Mutant(
        name="erased by a mark of long ago",
        invariant="I2",
        broken="Who went by another merge is erased with somebody who knows of one that came to nothing.",
        file="app/state/lua/forget.lua",
        original="if not is_among(ARGV[6], merge) then",
        replacement="if kind ~= 'hash' then",
        killed_by=CROSSING + "test_who_has_gone_by_another_merge_is_not_erased",
    ),
    Mutant(
        name="intent to join who was erased",
        invariant="I2",
        broken="A merge goes on into somebody who was erased meanwhile, as if it were the same person.",
        file="app/state/lua/forget.lua",
        original="redis.call('HDEL', KEYS[3], 'into', 'ia', 'ik')",
        replacement="",
        killed_by=CROSSING + "test_an_intent_to_join_who_was_erased_meanwhile_is_taken_back",
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
        name="erased in between",
        invariant="I2",
        broken="An import that was worked out before an erasure is written after it.",
        file="app/state/lua/rewrite.lua",
        original="  or (redis.call('GET', KEYS[5]) or '') ~= ARGV[17] then\n",
        replacement="  then\n",
        killed_by="tests/integration/state/test_rewrite.py"
        "::test_an_erasure_that_comes_in_between_is_seen_where_there_was_no_user",
    ),
    Mutant(
        name="merge done twice",
        invariant="I2",
        broken="Whoever finishes a merge that was cut off sorts the source's events into the target once more.",
        file="app/state/lua/rewrite.lua",
        original="if ARGV[10] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[10]) == 1 then",
        replacement="if false then",
        killed_by=IDENTITIES + "test_a_merge_that_was_cut_off_is_finished_by_whoever_comes_next[4-load]",
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
        file="app/state/redis.py",
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
    Mutant(
        name="trimmed before the commit",
        invariant="I2",
        broken="The log is trimmed before the archive has committed what was in it.",
        file="app/archive/archiver.py",
        original="        committed = self._archive.publish(files, add)\n",
        replacement="""\
        for partition, batch in batches.items():
            self._log.trim(partition, batch.identity, f"{batch.records[0].ms}-{batch.records[0].seq}", batch.end)
        committed = self._archive.publish(files, add)
""",
        killed_by=ARCHIVER + "test_what_cannot_be_committed_stays_in_the_log",
    ),
    Mutant(
        name="committed by two",
        invariant="I2",
        broken="An archiver that slept through its lease commits what another one has committed meanwhile.",
        file="app/archive/archiver.py",
        original="            if any(manifest.cursor(partition) != batch.start for partition, batch in batches.items()):\n",
        replacement="            if False:\n",
        killed_by=ARCHIVER + "test_an_archiver_that_slept_through_its_lease_doubles_nothing[1]",
    ),
    Mutant(
        name="another log trimmed",
        invariant="I2",
        broken="Whatever is in the log is trimmed up to where the archive has it, even if it is of another Redis by now.",
        file="app/state/lua/trim.lua",
        original="if string.sub(redis.call('GET', KEYS[2]) or '', 1, 16) ~= ARGV[1] then",
        replacement="if false then",
        killed_by=LOG_IDENTITY + "test_a_log_that_is_exchanged_just_before_it_is_trimmed_is_not_trimmed",
    ),
    Mutant(
        name="log of before the cursor trimmed",
        invariant="I2",
        broken="What a log has before the archive's cursor is trimmed without a look at whether the archive has it.",
        file="app/archive/reading.py",
        original="        if lacking is not None:\n",
        replacement="        if False:\n",
        killed_by=LOG_IDENTITY
        + "test_what_came_by_a_clock_that_was_behind_after_a_log_lost_its_end_is_not_trimmed[1700000000300-0]",
    ),
    Mutant(
        name="part of an archive taken over",
        invariant="I2",
        broken="A restored Redis takes over what partitions of the archive it can, although it has gone on in others.",
        file="app/archive/identity.py",
        original="    restored = all(p in marks",
        replacement="    restored = not known or any(p in marks",
        killed_by=LOG_IDENTITY + "test_a_restored_redis_takes_nothing_of_an_archive_that_has_gone_on_in_one_partition",
    ),
    Mutant(
        name="expiry without the archive",
        invariant="I2",
        broken="Idle users leave Redis although another folder has what the archive lacks of them.",
        file="app/archive/expiry.py",
        original=' if pp in manifest.whole else ""',
        replacement="",
        killed_by=EXPIRY + "test_nobody_goes_whose_events_an_earlier_folder_had",
    ),
    Mutant(
        name="a merge is known by its last record alone",
        invariant="I2",
        broken="Events that a killed merge has brought to another user are the source's, too, to readers of the archive.",
        file="app/archive/replay.py",
        original="                self.life.epoch == move.epoch or (move",
        replacement="                False and (move",
        killed_by=HALVES + "test_of_a_merge_that_is_archived_by_half_nothing_is_lost_and_nothing_twice[person-True-True-nothing]",
    ),
    Mutant(
        name="a merge whose target the archive lacks",
        invariant="I2",
        broken="Where the archive has come to the source's record of a merge only, the source's events are gone.",
        file="app/archive/replay.py",
        original="        elif life.events and record.count and not self._passed_on(record):",
        replacement="        elif False:",
        killed_by=HALVES + "test_of_a_merge_that_is_archived_by_half_nothing_is_lost_and_nothing_twice[anon-True-False-nothing]",
    ),
    Mutant(
        name="an epoch that was merged goes on",
        invariant="I2",
        broken="What a source was told after Redis had lost that it was merged is taken for merged when it is.",
        file="app/archive/restore.py",
        original="new_epoch() if user.went_on else user.epoch",
        replacement="user.epoch",
        killed_by=HALVES
        + "test_what_came_to_a_source_after_redis_had_lost_that_it_was_merged_is_its_own_until_it_is_merged_again",
    ),
    Mutant(
        name="training reads half a merge",
        invariant="I2",
        broken="The trainer takes the events of a source whose own record of the merge is missing for its own.",
        file="model/data/importers/archive.py",
        original="        if moved == epoch or (moved not in seen and move_ms >= last_ms):\n",
        replacement="        if False:\n",
        killed_by="tests/unit/archive/test_archive_moves.py::test_what_had_left_the_sequence_before_is_there_once_too[8-target]",
    ),
    Mutant(
        name="an archive that lags is counted from its end",
        invariant="I2",
        broken="Older events of a source are dropped for those that the archive has not come to yet.",
        file="app/archive/replay.py",
        original="max(0, move.moved - (move.n - self.life.n))",
        replacement="move.moved",
        killed_by="tests/unit/archive/test_archive_moves.py::test_what_had_left_the_sequence_before_is_there_once_too[5-target]",
    ),
    Mutant(
        name="marks of merges expire",
        invariant="I2",
        broken="A merge that is finished when its target has left brings the events a second time.",
        file="app/state/lua/expire.lua",
        original="'^[md]:'",
        replacement="'^m:'",
        killed_by=HALVES + "test_a_merge_that_is_finished_when_its_target_has_left_brings_nothing_again",
    ),
    Mutant(
        name="merges that were cut off stay so",
        invariant="I2",
        broken="A merge that was killed, and that nobody asks for again, is never finished.",
        file="app/archive/expiry.py",
        original="                    gone += self._finish(halfway)\n",
        replacement="",
        killed_by=HALVES + "test_a_merge_that_nobody_asks_for_again_is_finished_by_the_walk_through_all_users",
    ),
]

READ_YOUR_WRITES = [
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
]

CONSTANT_COST = [
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
]

STATE_IS_A_CACHE = [
    Mutant(
        name="fold of two epochs",
        invariant="I6",
        broken="Events of an epoch that has ended and of the next one are folded as one sequence.",
        file="app/ingest/advance.py",
        original="if (dirty.epoch, dirty.generation) == (epoch, generation) and dirty.start",
        replacement="if dirty.start",
        killed_by="tests/unit/app/test_advance.py::test_events_of_two_epochs_are_not_taken_for_one_sequence",
    ),
    Mutant(
        name="gap behind a state in hand",
        invariant="I6",
        broken="A worker folds on a state that it holds, although the events after it have left the sequence.",
        file="app/state/lua/load.lua",
        original="if held and held >= start and held <= appended then",
        replacement="if held and held <= appended then",
        killed_by=LOAD_COMMIT + "test_a_state_in_hand_is_of_no_use_once_events_after_it_have_left_the_sequence",
    ),
    Mutant(
        name="commit of another epoch",
        invariant="I6",
        broken="A fold in flight brings an erased user back.",
        file="app/state/lua/commit.lua",
        original="if meta[2] ~= epoch or applied > appended or meta[3] then",
        replacement="if applied > appended or meta[3] then",
        killed_by=ERASURES + "test_a_fold_in_flight_does_not_bring_an_erased_user_back",
    ),
    Mutant(
        name="commit beside a merge",
        invariant="I6",
        broken="A state of a user who is being merged is stored, and stays under a name that nobody has.",
        file="app/state/lua/commit.lua",
        original="or applied > appended or meta[3] then",
        replacement="or applied > appended then",
        killed_by=IDENTITIES + "test_a_merge_takes_states_under_a_model_that_is_registered_meanwhile",
    ),
    Mutant(
        name="commit that goes back",
        invariant="I6",
        broken="A slow fold replaces a state by one of fewer events.",
        file="app/state/lua/commit.lua",
        original="    elseif there > applied or (there == applied and there_base == base and there_version >= version) then",
        replacement="    elseif false then",
        killed_by=LOAD_COMMIT + "test_commit_never_goes_back",
    ),
    Mutant(
        name="commit that forgets",
        invariant="I6",
        broken="A state that remembers beyond the sequence is given up for one that was rebuilt from it.",
        file="app/state/lua/commit.lua",
        original="    if base > there_base then",
        replacement="    if false then",
        killed_by=LOAD_COMMIT + "test_a_state_that_remembers_more_is_not_given_up_for_one_that_began_later",
    ),
    Mutant(
        name="commit to another server",
        invariant="I6",
        broken="A state of events that a Redis which is gone had is stored in the one that has taken over, which may have less.",
        file="app/fold/commits.py",
        original="if state.generation == generation]",
        replacement="if True]",
        killed_by="tests/unit/app/test_advance.py::test_a_state_of_what_another_server_had_is_not_committed",
    ),
    Mutant(
        name="state that expires though it is read",
        invariant="I6",
        broken="What a state remembers beyond the sequence is lost some time after the last commit, however often it is read.",
        file="app/state/lua/load.lua",
        original="if redis.call('PTTL', KEYS[3]) < ARGV[5] / 2 then",
        replacement="if false then",
        killed_by=LOAD_COMMIT + "test_a_state_that_is_loaded_has_half_of_its_time_left_and_those_of_other_models_go",
    ),
    Mutant(
        name="state that expires though it is in hand",
        invariant="I6",
        broken="Who is answered from what a worker holds has no stored state any more when that worker ends.",
        file="app/fold/users.py",
        original="                    self._commits.renew(tenant, user.user_id, own)\n",
        replacement="",
        killed_by="tests/integration/fold/test_users.py"
        "::test_who_is_read_from_the_cache_alone_is_remembered_by_others_for_as_long[False]",
    ),
    Mutant(
        name="gap between state and tail",
        invariant="I6",
        broken="Events are folded onto a state that is behind the first event that the sequence still has.",
        file="app/state/lua/load.lua",
        original="if usable and applied >= start and applied <= appended then",
        replacement="if usable and applied <= appended then",
        killed_by=LOAD_COMMIT + "test_a_state_is_dropped_once_events_after_it_have_left_the_sequence",
    ),
    Mutant(
        name="state of another model",
        invariant="I6",
        broken="All models have one state of a user.",
        file="app/state/keys.py",
        original=':state:{encode_id(model_id)}:{u}"',
        replacement=':state:m:{u}"',
        killed_by=LOAD_COMMIT + "test_models_never_see_each_others_states",
    ),
    Mutant(
        name="state of other attributes",
        invariant="I6",
        broken="A state that began with other attributes is continued.",
        file="app/state/lua/attributes.lua",
        original="redis.call('HSET', KEYS[1], 'a', ARGV[3], 'e', ARGV[4])",
        replacement="redis.call('HSET', KEYS[1], 'a', ARGV[3], 'e', meta[1] or ARGV[4])",
        killed_by=LOAD_COMMIT + "test_new_attributes_start_a_new_epoch_and_refold_everything",
    ),
    Mutant(
        name="header of a rebuilt state",
        invariant="I6",
        broken="A state that was rebuilt from what is left of the sequence says that it knows everything.",
        file="app/fold/fold.py",
        original="headers.append(Header(user.epoch, user.start, user.start, self._catalogue.version))",
        replacement="headers.append(Header(user.epoch, 0, user.start, self._catalogue.version))",
        killed_by="tests/unit/app/test_fold.py::test_the_header_says_which_events_the_state_is_of",
    ),
]

K_MEANS_K = [
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

ONE_MODEL_PER_REQUEST = [
    Mutant(
        name="committed by the wrong one",
        invariant="I8",
        broken="An activation that was given up for dead commits what another one has made the candidate.",
        file="app/state/lua/model.lua",
        original="  if get('token') ~= ARGV[2] then return 0 end\n",
        replacement="",
        killed_by="tests/integration/state/test_model_board.py::test_who_has_lost_its_place_changes_nothing_any_more",
    ),
    Mutant(
        name="switched before it is open",
        invariant="I8",
        broken="A model becomes active while a worker does not have it open yet and has to refuse its requests.",
        file="app/models/activate.py",
        original="if model is not None and all(model_id in said.ready for said in says.values()):",
        replacement="if model is not None:",
        killed_by=SWAP + "test_an_activation_is_not_over_while_one_worker_may_answer_from_the_old_model",
    ),
    Mutant(
        name="commit that was not heard of",
        invariant="I8",
        broken="Where the answer to a commit is lost, it is said that the old model goes on serving.",
        file="app/models/activate.py",
        original="                committed = None  # it may be from here on, whatever is heard of it\n",
        replacement="",
        killed_by="tests/integration/models/test_lost_answer.py"
        "::test_where_nothing_is_heard_any_more_nobody_says_that_the_old_model_serves",
    ),
    Mutant(
        name="lease from the answer on",
        invariant="I8",
        broken="A lease begins when the board has answered, so that it may outlive the time after which its worker is dead.",
        file="app/models/hall.py",
        original="asked_s + LEASE_S",
        replacement="monotonic() + LEASE_S",
        killed_by=SWAP + "test_a_lease_begins_before_the_board_is_read",
    ),
    Mutant(
        name="way back behind a backfill",
        invariant="I8",
        broken="Going back to the model before waits until all users are folded with it, at the rate of a backfill.",
        file="app/models/activate.py",
        original="                if serving.previous != model_id:",
        replacement="                if True:",
        killed_by=BACKFILL + "test_a_way_back_waits_for_no_backfill_and_its_lists_are_those_of_a_fold_anew",
    ),
    Mutant(
        name="folded for nothing",
        invariant="I8",
        broken="A backfill folds users whose states it does not store, so that one that was broken off begins anew.",
        file="app/fold/users.py",
        original=" or user.meta.appended - user.tail_start < at_least:",
        replacement=":",
        killed_by=BACKFILL + "test_who_has_less_to_be_folded_than_is_stored_is_neither_folded_nor_charged_by_a_backfill",
    ),
    Mutant(
        name="way of an activation barred",
        invariant="I8",
        broken="One user with a long history and a damaged event in it fails every activation.",
        file="app/models/activate.py",
        original="        shorter = await users.shorten(long)\n    except DamagedError:\n",
        replacement="        shorter = await users.shorten(long)\n    except NotFoundError:\n",
        killed_by=BACKFILL + "test_a_backfill_passes_over_users_who_are_damaged",
    ),
    Mutant(
        name="workers are not waited for",
        invariant="I8",
        broken="An activation is acknowledged while another worker answers from the old model.",
        file="app/models/activate.py",
        original="if self._hall.generation >= generation and all(said.generation >= generation for said in says.values()):",
        replacement="if self._hall.generation >= generation:",
        killed_by=SWAP + "test_an_activation_is_not_over_while_one_worker_may_answer_from_the_old_model",
    ),
    Mutant(
        name="emptied board for anybody",
        invariant="I8",
        broken="A worker that never served takes a store that was emptied before the one that served can.",
        file="app/models/hall.py",
        original="        if not self._introduced or self._served_last:\n",
        replacement="        if True:\n",
        killed_by="tests/integration/models/test_troubled_store.py::test_a_store_that_was_emptied_is_left_to_the_worker_that_served",
    ),
    Mutant(
        name="lease without end",
        invariant="I8",
        broken="A worker that hears nothing of a swap answers from the old model for ever.",
        file="app/models/hall.py",
        original="self._lease_until = asked_s + LEASE_S",
        replacement='self._lease_until = float("inf")',
        killed_by=SWAP + "test_a_worker_that_hears_nothing_answers_from_its_model_until_its_lease_ends",
    ),
    Mutant(
        name="asked twice",
        invariant="I8",
        broken="A request asks twice which model serves: one makes the list, another signs it.",
        file="app/api/recommendations.py",
        original="        answer = await service.recommender.recommend(ruled, stages)\n",
        replacement="""\
        import msgspec
        answer = await service.recommender.recommend(ruled, stages)
        signs = (await service_of(request)).runtime.bundle.manifest.model_id
        answer = msgspec.structs.replace(answer, model_id=signs)
""",
        killed_by=SWAP + "test_a_request_ends_with_the_model_that_it_began_with",
    ),
]

REPEATABLE = [
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

HOSTILE_INPUT = [
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
        name="noted for the successor",
        invariant="I6",
        broken="An event that one server stored is folded as if the one that has taken over meanwhile had it.",
        file="app/models/served.py",
        original="to.total, user.events, to.generation)",
        replacement="to.total, user.events, known.generation)",
        killed_by="tests/integration/api/test_replaced_server.py::test_an_event_that_a_successor_lacks_is_in_no_state",
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

MUTANTS = [
    *EXACT_FOLD,
    *NOTHING_LOST_NOTHING_TWICE,
    *READ_YOUR_WRITES,
    *CONSTANT_COST,
    *STATE_IS_A_CACHE,
    *K_MEANS_K,
    *ONE_MODEL_PER_REQUEST,
    *REPEATABLE,
    *HOSTILE_INPUT,
]
