"""The fold that both paths need: stored events -> user states. Reads fold the tail, the background fold runs ahead of them."""

from app.fold.commits import Commits
from app.fold.fold import Fold, UserState
from app.fold.users import Users

__all__ = ["Commits", "Fold", "UserState", "Users"]
