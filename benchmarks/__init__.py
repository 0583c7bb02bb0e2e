"""How fast the training package is, beside what one would use instead; see README.md."""
