"""Which lines of a job's journals matter, and in what order."""
