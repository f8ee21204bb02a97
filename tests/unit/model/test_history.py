"""Which epoch of a run is kept."""

import math

from model.history import best_epoch, best_ndcg

NAN = math.nan
COURSE = [{"epoch": 1, "valid_ndcg": 0.2}, {"epoch": 2, "valid_ndcg": 0.3}, {"epoch": 3, "valid_ndcg": 0.3}]


def test_the_last_of_the_best_epochs_is_kept():
    assert (best_epoch(COURSE), best_ndcg(COURSE)) == (3, 0.3)
    assert (best_epoch([*COURSE, {"epoch": 4, "valid_ndcg": 0.1}]), best_epoch([*COURSE, {"epoch": 4, "valid_ndcg": NAN}])) == (
        3,
        3,
    )


def test_the_last_epoch_is_kept_where_nothing_was_validated():
    course = [{"epoch": 1, "valid_ndcg": NAN}, {"epoch": 2, "valid_ndcg": NAN}]
    assert best_epoch(course) == 2
    assert math.isnan(best_ndcg(course))
    assert best_epoch([]) == 0
