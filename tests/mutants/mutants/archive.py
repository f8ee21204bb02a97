"""I2: nothing is lost and nothing there twice, in the archive and from there."""

from mutants.mutant import Mutant

ARCHIVER = "tests/integration/archive/test_archiver.py::"
LOG_IDENTITY = "tests/integration/archive/test_log_identity.py::"
EXPIRY = "tests/integration/archive/test_expiry.py::"
HALVES = "tests/integration/archive/test_archived_halves.py::"

MUTANTS = [
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
