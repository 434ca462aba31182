"""A learned codebook: nearest code with a straight-through gradient, learned by running means.

VQ-VAE, arXiv:1711.00937, with the codebook as exponential moving averages (its appendix A.1) and
restarts of codes that nothing uses (Jukebox, arXiv:2005.00341, section 3.1). The learning is
vector-quantize-pytorch's. The search is ours: the library builds a one-hot matrix of all vectors
and codes in each forward pass, and leaves autocast on a CPU switched on.

A forward pass never changes the codebook. It collects what it quantised, and whoever trains calls
`update` once an optimizer step with the vectors of all batches and processes.

Shapes: B batch, D channels of a code, h w grid, N vectors, K codes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

_MAX_ENTRIES = 1 << 25
"""Entries of an (N, K) matrix that is held at once: 128 MB in float32."""


class Quantised(NamedTuple):
    """What a codebook makes of features.

    Attributes:
        latents: float32 (B, D, h, w), codes exactly; their gradient goes to the features as it is.
        indices: int64 (B, h, w).
        commitment: float32 scalar, mean over elements of (features - code)^2, the code constant.
    """

    latents: Tensor
    indices: Tensor
    commitment: Tensor


class VectorQuantizer(nn.Module):
    """A codebook of K codes of D channels.

    The codes start random and small; `initialise` starts them from clusters of data instead.

    Args:
        channels: D.
        codebook_size: K.
        cosine: vectors and codes have unit length, so the nearest is that at the smallest angle
            (ViT-VQGAN, arXiv:2110.04627, section 3.2).

    Attributes:
        collecting: whether forward passes in training mode keep their vectors for `update`.
    """

    def __init__(self, channels: int, codebook_size: int, *, cosine: bool = False) -> None:
        # here, not above: it takes two seconds, and most models have no codebook
        from vector_quantize_pytorch.vector_quantize_pytorch import Codebook

        super().__init__()
        if codebook_size < 2:
            raise ValueError(f"found codebook_size {codebook_size}, expected at least 2 codes")
        # no restarts of its own: `update` makes them, once all vectors are counted
        self.codebook = Codebook(
            channels, codebook_size, use_cosine_sim=cosine, threshold_ema_dead_code=0
        )
        self.codebook.initted.fill_(False)
        self.collecting = False
        self._pending: list[tuple[Tensor, Tensor]] = []
        self.configure(decay=0.99, restart_below=0.5)

    @property
    def codes(self) -> Tensor:
        """The codes, float32 (K, D), whatever dtype the model was cast to."""
        embed: Tensor = self.codebook.embed
        return embed[0].float()

    @property
    def usage(self) -> Tensor:
        """Running mean of how often a step each code is used, float32 (K,)."""
        cluster_size: Tensor = self.codebook.cluster_size
        return cluster_size[0].float()

    @property
    def initialised(self) -> bool:
        """Whether the codes come from data: from `initialise`, or from an update."""
        return bool(self.codebook.initted)

    def configure(self, *, decay: float, restart_below: float) -> None:
        """Say how the codes are learned.

        Args:
            decay: of the running means, in (0, 1).
            restart_below: a code with a smaller running use a step (of all processes together)
                is replaced; 0 never replaces one.
        """
        assert 0 < decay < 1
        assert restart_below >= 0
        self.codebook.decay = decay
        self.restart_below = restart_below
        # A new code counts as used so often, to have some steps before it is judged itself.
        self.codebook.reset_cluster_size = max(1.0, 2 * restart_below)

    def forward(self, h: Tensor) -> Quantised:
        """Replace each vector of features (B, D, h, w) by its nearest code."""
        batch, _, height, width = h.shape
        with torch.autocast(h.device.type, enabled=False):
            vectors = self.codebook.transform_input(rearrange(h.float(), "b d h w -> (b h w) d"))
            codes = self.codes.to(vectors.device)  # offloading moves what has a forward pass
            indices = _search(vectors.detach(), codes)
            chosen = codes[indices]
            commitment = F.mse_loss(vectors, chosen)
            # straight through; written so, the sum is the code to the last bit
            latents = chosen + (vectors - vectors.detach())
        if self.collecting and self.training:
            self._pending.append((vectors.detach(), indices))
        shape = {"b": batch, "h": height, "w": width}
        return Quantised(
            rearrange(latents, "(b h w) d -> b d h w", **shape),
            rearrange(indices, "(b h w) -> b h w", **shape),
            commitment,
        )

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes float32 (B, D, h, w) of indices int64 (B, h, w)."""
        return rearrange(self.codes.to(indices.device)[indices], "b h w d -> b d h w")

    @torch.no_grad()
    def find(self, latents: Tensor) -> Tensor:
        """Indices int64 (B, h, w) of codes (B, D, h, w): the inverse of `lookup`.

        Other latents get the nearest code's index, and equal codes the first one's.
        """
        batch, _, height, width = latents.shape
        vectors = rearrange(latents.float(), "b d h w -> (b h w) d")
        indices = find_nearest(vectors, self.codes.to(vectors.device))
        return rearrange(indices, "(b h w) -> b h w", b=batch, h=height, w=width)

    def take_pending(self) -> tuple[Tensor, Tensor] | None:
        """Vectors float32 (N, D) and their indices int64 (N,) since the last call, or None."""
        if not self._pending:
            return None
        vectors, indices = (torch.cat(parts) for parts in zip(*self._pending, strict=True))
        self._pending.clear()
        return vectors, indices

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """Start from k-means clusters of vectors (N, D), better N >= 2 K of them.

        Uses torch's global generator. A cluster that ends up empty becomes a random vector.
        """
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = self.codebook.transform_input(vectors.float())
            self.codebook.initted.fill_(False)
            self.codebook.init_embed_(vectors[None])
            self._replace(self.codebook.cluster_size == 0, vectors)

    @torch.no_grad()
    def update(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the codes once: running means of count and sum, then restarts.

        With n_k vectors at code k in this step and s_k their sum, N_k becomes decay * N_k +
        (1 - decay) * n_k, likewise m_k with s_k, and the code m_k / N_k (VQ-VAE, equations 6-8),
        with Laplace smoothing of N_k. Uses torch's global generator for restarts.

        Args:
            vectors: float32 (N, D), all that an optimizer step quantised, on all processes.
            indices: int64 (N,), their codes.
        """
        assert len(vectors) == len(indices) > 0
        codebook = self.codebook
        with torch.autocast(vectors.device.type, enabled=False):
            vectors = codebook.transform_input(vectors.float())
            rows = _rows(self.codes)
            parts = list(zip(torch.split(vectors, rows), torch.split(indices, rows), strict=True))
            for part, places in parts[:-1]:
                codebook.update_indices(part, places, accum_ema_update=True)
            codebook.update_indices(*parts[-1])
            if self.restart_below > 0:
                self._replace(codebook.cluster_size < self.restart_below, vectors)
        codebook.initted.fill_(True)

    def _replace(self, dead: Tensor, vectors: Tensor) -> None:
        """Random vectors of (N, D) take the place of codes where `dead`, bool (1, K)."""
        if bool(dead.any()):
            self.codebook.replace(vectors[None], batch_mask=dead)


def _rows(codes: Tensor) -> int:
    """How many vectors to compare with all codes at once."""
    return max(1, _MAX_ENTRIES // len(codes))


def _search(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest code, int64 (N,), by |x - e|^2 = |x|^2 - 2 x.e + |e|^2.

    Fast; codes nearer to each other than the rounding of these sums are taken for one another.
    """
    norms = codes.square().sum(dim=1)
    parts = torch.split(vectors, _rows(codes))
    found = [torch.addmm(norms, part, codes.T, alpha=-2).argmin(dim=1) for part in parts]
    return torch.cat(found)


def find_nearest(vectors: Tensor, codes: Tensor) -> Tensor:
    """Index of the nearest code, int64 (N,), by differences: a code itself is at exactly 0."""
    mode = "donot_use_mm_for_euclid_dist"
    parts = torch.split(vectors, _rows(codes))
    return torch.cat([torch.cdist(part, codes, compute_mode=mode).argmin(dim=1) for part in parts])
