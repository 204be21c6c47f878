"""Heads: what is trained on top of the frozen backbone, how it scores, and what it minimises."""
