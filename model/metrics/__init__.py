"""What a ranked list is worth: one metric a file, with its formula and source.

Ranked lists are (Q, K) item rows, best first, -1 from where a short list ends. A metric gives one value per query, so that means
over queries, means over users and errors clustered by user can be taken from it; coverage alone belongs to all lists together.
"""

from model.metrics.coverage import coverage
from model.metrics.f1 import f1
from model.metrics.hit_rate import hit_rate
from model.metrics.intra_list_diversity import intra_list_diversity
from model.metrics.mrr import mrr
from model.metrics.ndcg import ndcg
from model.metrics.novelty import novelty
from model.metrics.precision import precision
from model.metrics.recall import recall

ACCURACY = {"recall": recall, "hit_rate": hit_rate, "ndcg": ndcg, "mrr": mrr, "precision": precision, "f1": f1}

__all__ = [
    "ACCURACY",
    "coverage",
    "f1",
    "hit_rate",
    "intra_list_diversity",
    "mrr",
    "ndcg",
    "novelty",
    "precision",
    "recall",
]
