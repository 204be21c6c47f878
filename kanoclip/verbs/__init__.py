"""Verbs: what the command line can do."""
