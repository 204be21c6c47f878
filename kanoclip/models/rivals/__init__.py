"""Rivals from the literature, one file a family; what they publish beside it is in ``configs/rivals``."""
