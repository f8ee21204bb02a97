"""I8: one model per request."""

from mutants.mutant import Mutant

BACKFILL = "tests/integration/models/test_backfill.py::"
SWAP = "tests/integration/models/test_swap.py::"

MUTANTS = [
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
