"""In which order records come in an epoch, and which process gets which.

The order of an epoch depends on the seed and the epoch alone: shards are shuffled and taken in
groups of some ten thousand records, whose records are shuffled together. It is cut into *turns*
of a few records (a batch, where the dataset makes batches); turn after turn goes to the ranks, and
on each rank to its workers. So a part of an epoch that all ranks have read is its beginning,
whatever the numbers of ranks and workers were, and a run may go on with others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS_TOGETHER = 64  # row groups of Parquet files that are in memory at once


@dataclass(frozen=True, slots=True)
class Group:
    """Shards whose records are shuffled together.

    Attributes:
        number: In the epoch.
        start: Place of its first record in the epoch.
        shards: Their numbers, in the order of the epoch.
        num_records: In all of them.
    """

    number: int
    start: int
    shards: tuple[int, ...]
    num_records: int


@dataclass(frozen=True, slots=True)
class EpochOrder:
    """The order of one epoch.

    Attributes:
        counts: Records of each shard.
        epoch: Its number.
        seed: Of all epochs.
        shuffle: Whether to shuffle at all.
        window: Least number of records in a group, the last one excepted.
    """

    counts: Sequence[int]
    epoch: int
    seed: int
    shuffle: bool
    window: int

    def groups(self, start: int = 0) -> Iterator[Group]:
        """Yields the groups from the one on that has the record at place `start`."""
        shards = np.arange(len(self.counts))
        if self.shuffle:
            shards = np.random.default_rng([self.seed, self.epoch]).permutation(shards)
        waiting: list[int] = []
        number = place = total = 0
        for shard in shards.tolist():
            if self.counts[shard]:
                waiting.append(shard)
                total += self.counts[shard]
            # Without shuffling a group is a shard: no more of the index need be in memory.
            if waiting and (total >= self.window or not self.shuffle):
                if place + total > start:
                    yield Group(number, place, tuple(waiting), total)
                number, place, total, waiting = number + 1, place + total, 0, []
        if waiting and place + total > start:
            yield Group(number, place, tuple(waiting), total)

    def places(self, group: Group) -> NDArray[np.int64]:
        """Returns the order of a group's records, numbered through its shards."""
        places = np.arange(group.num_records)
        return self._generator(group).permutation(places) if self.shuffle else places

    def places_by_block(self, group: Group, blocks: Sequence[int]) -> list[NDArray[np.int64]]:
        """Returns the order of a group's records where they can only be read block by block.

        Args:
            group: Of shards.
            blocks: Number of each record's block, rising from 0.

        Returns:
            Parts of the order, each of which reads few blocks.
        """
        starts = np.flatnonzero(np.diff(np.asarray(blocks), prepend=-1))
        runs = np.split(np.arange(group.num_records), starts[1:])
        if not self.shuffle:
            return runs
        generator = self._generator(group)
        order = generator.permutation(len(runs)).tolist()
        return [
            generator.permutation(np.concatenate([runs[block] for block in part]))
            for part in (
                order[first : first + BLOCKS_TOGETHER]
                for first in range(0, len(order), BLOCKS_TOGETHER)
            )
        ]

    def _generator(self, group: Group) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, 1 + group.number])


@dataclass(frozen=True, slots=True)
class Share:
    """Which turns one worker of one rank takes: those of its rank in rotation among its workers.

    Attributes:
        rank: Of `world_size` processes.
        world_size: How many processes read the dataset together.
        worker: Of `num_workers` of this rank.
        num_workers: How many workers this rank has.
    """

    rank: int = 0
    world_size: int = 1
    worker: int = 0
    num_workers: int = 1

    def has(self, turn: int) -> bool:
        """Whether a turn is this worker's."""
        return (
            turn % self.world_size == self.rank
            and turn // self.world_size % self.num_workers == self.worker
        )
