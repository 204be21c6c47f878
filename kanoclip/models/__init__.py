"""Models: each is a choice of components and one ``forward``."""
