"""Ways to break `app/`, each of which one test notices; `test_mutants.py` breaks it and looks."""

from mutants import archive, fold, identities, inputs, models, reads, states, writes
from mutants.mutant import Mutant

__all__ = ["MUTANTS", "Mutant"]

MUTANTS = [mutant for part in (fold, writes, identities, archive, reads, states, models, inputs) for mutant in part.MUTANTS]
