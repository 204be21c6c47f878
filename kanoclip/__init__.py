"""KAnoCLIP, its ablations and its rivals: zero-shot visual anomaly detection as one Lightning framework."""

__version__ = "0.1.0"
