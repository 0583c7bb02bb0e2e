"""Throw-away nodes on one machine, to try, show and test everything Minos does without a second computer."""
