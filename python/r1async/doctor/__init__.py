"""`r1async doctor`: does an engine serve what it is given? Every check is measured against the learner's forward."""
