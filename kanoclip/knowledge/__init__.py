"""The knowledge base: what normal and anomalous objects look like, in words."""
