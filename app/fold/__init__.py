"""The fold that both paths need: stored events -> user states. Reads fold the tail, the background fold runs ahead of them."""

from app.fold.cache import CachedState, StateCache
from app.fold.commits import Commits
from app.fold.fold import Fold, Unfolded
from app.fold.users import Asked, LongTail, Users, UserState

__all__ = ["Asked", "CachedState", "Commits", "Fold", "LongTail", "StateCache", "Unfolded", "UserState", "Users"]
