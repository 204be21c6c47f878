"""What AdaCLIP learns behind the towers, and its hybrid semantic fusion: a global feature with odd patches in it."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kanoclip.backbone.clip import CLIPBackbone
from kanoclip.heads.adapter import Adapter
from kanoclip.types import KanoclipError

PATCHES_PER_CLUSTER = 5


class ClassProjection(Adapter):
    """Project the global feature by a linear layer that starts at random; not the identity before training.

    Reference:
        Y. Cao et al., *AdaCLIP*, ECCV 2024, and its code. It takes the global feature before it gets unit length.
    """

    def build(self, backbone: CLIPBackbone) -> None:
        """Create the layer."""
        self.layer = nn.Linear(backbone.dim, backbone.dim)

    def forward(self, cls: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(B, D)``, unit length."""
        return F.normalize(self.layer(cls).float(), dim=-1)


def hybrid_semantic_fusion(
    cls: Tensor, patches: Tensor, abnormality: Tensor, clusters: int = 20, share: float = 0.2
) -> Tensor:
    """Add the centres of the most anomalous patches to the global feature (HSF).

    The ``5 * clusters`` most anomalous patches of an image are clustered by k-means, the levels of a patch joined. The
    mean h of the centres, itself averaged over levels, gets unit length: a patch counts the more, the fewer are alike.

    Args:
        cls: ``(B, D)``, unit length.
        patches: ``(L, B, N, D)``, unit length.
        abnormality: ``(B, N)``, how anomalous each patch is; only its order counts.
        clusters: Number of clusters, at least 1.
        share: Weight of h; the global feature has the rest.

    Returns:
        ``(B, D)``, unit length. Gradients pass to the patches, not through the choice and the clusters.

    Reference:
        Y. Cao et al., *AdaCLIP*, ECCV 2024, as in its code, which says that it differs from the paper. There k-means
        goes on with the random numbers of the images before; here each image starts anew.
    """
    L, _, N, D = patches.shape
    count = min(PATCHES_PER_CLUSTER * clusters, N)
    # in the order of their places: two that are all but equally anomalous do not change what k-means draws
    place = abnormality.topk(count, dim=1).indices.sort(1).values  # (B, count)
    chosen = patches.gather(2, place[None, :, :, None].expand(L, -1, -1, D))  # (L, B, count, D)
    fused = []
    for odd in chosen.unbind(1):  # (L, count, D)
        label = cluster(odd.detach().transpose(0, 1).flatten(1), clusters)  # (count,)
        members = label.bincount()
        weight = 1 / (members[label] * members.count_nonzero())  # (count,)
        fused.append((weight[:, None] * odd.mean(0)).sum(0))
    centre = F.normalize(torch.stack(fused), dim=-1)
    return F.normalize(share * centre + (1 - share) * cls, dim=-1)


def cluster(points: Tensor, clusters: int) -> Tensor:
    """Cluster points ``(n, W)`` by k-means, started by k-means++ with the same random numbers each time.

    Returns:
        The cluster of each point ``(n,)``, int64, from 0; points that are alike may leave a cluster empty.

    Raises:
        KanoclipError: In an export.
    """
    if torch.compiler.is_compiling():
        raise KanoclipError("k-means cannot be exported. Fit with --model.clusters 0, or use kanoclip predict.")
    from scipy.cluster.vq import kmeans2  # here: no other model needs it

    values = points.float().nan_to_num(0, 0, 0).cpu().numpy()  # SciPy crashes on NaN; what is summed still has it
    with warnings.catch_warnings():  # of points that are all alike
        warnings.simplefilter("ignore")
        found = kmeans2(values, min(clusters, len(values)), iter=20, minit="++", seed=np.random.default_rng(0))[1]
    return torch.from_numpy(found.astype(np.int64)).to(points.device)
