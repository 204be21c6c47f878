"""Rivals from the literature, one file a family; what they publish beside it is in ``configs/rivals``.

AdaCLIP (ECCV 2024) is not among them: it learns tokens inside the image tower, some of them made from the image at
hand, so gradients would have to pass a tower that is frozen here and whose features can be kept.
"""
