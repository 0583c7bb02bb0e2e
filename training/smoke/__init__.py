"""Is this machine fit for training? `python -m training.smoke`; see __main__.py."""
