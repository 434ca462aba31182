"""A coder of codes learned in a minute, where a codec is exported and no run has trained one."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from codec.entropy.fit_indices import fit_trees
from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_tables import Indices
from train.entropy.frozen_codes import Planes, join_planes
from train.entropy.index_crops import IndexBatch
from train.entropy.index_integers import integer_index_coder
from train.entropy.index_model import IndexModel
from train.entropy.sections import IndicesConfig
from train.schedules import warmup_cosine

PASSES = 3
"""How often the given indices are looked at."""
MAX_STEPS = 400
BATCH, SIDE = 4, 32
LEARNING_RATE = 4e-3
SETTINGS = IndicesConfig(values=8, units=48, features=24)


def quick_index_coder(
    images: Sequence[Indices], vectors: Sequence[NDArray[np.float64]]
) -> IndexCoder:
    """A coder that begins as frequency tables and learns what is around as far as the data go.

    Args:
        images: indices of training images.
        vectors: (K, dimensions) code vectors of each codebook, coarse to fine.
    """
    trees = fit_trees(images, vectors)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = IndexModel([len(book) for book in vectors], SETTINGS)
        model.start(trees, vectors)
    _train(model, images)
    return integer_index_coder(model.eval(), images)


@torch.enable_grad()
def _train(model: IndexModel, images: Sequence[Indices]) -> None:
    """Adam with a cosine over random crops; a handful of indices leave the model as it is."""
    planes = [join_planes(image) for image in images]
    steps = min(MAX_STEPS, PASSES * sum(p[-1].size for p in planes) // (BATCH * SIDE * SIDE))
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    random = np.random.default_rng(0)
    for step in track(range(steps), "learning codes", transient=True):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warmup_cosine(
                step, warmup=steps // 20, total=steps, final=0.01
            )
        optimizer.zero_grad()
        for _ in range(BATCH):
            batch = _crop(planes[int(random.integers(len(planes)))], len(images[0]), random)
            loss: Tensor = model(batch.planes).sum() / (BATCH * batch.num_symbols)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def _crop(planes: Planes, levels: int, random: np.random.Generator) -> IndexBatch:
    """A crop of at most `SIDE` cells a side, at a multiple of the coarsest codes' side."""
    stride = 1 << (levels - 1)
    sides = [min(SIDE - SIDE % stride, cells) for cells in planes.shape[1:]]
    top, left = (
        stride * int(random.integers((cells - side) // stride + 1))
        for cells, side in zip(planes.shape[1:], sides, strict=True)
    )
    crop = planes[None, :, top : top + sides[0], left : left + sides[1]]
    return IndexBatch(torch.from_numpy(crop.astype(np.int64)))
