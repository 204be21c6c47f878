"""The frozen CLIP: image -> Features, texts -> unit vectors of the same width."""
