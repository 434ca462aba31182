"""LatentDataset: the records of a finished dataset for training, as torch's DataLoader wants them.

    dataset = LatentDataset("latents/", batch_size=256)
    for epoch in range(100):
        dataset.set_epoch(epoch)
        for batch in DataLoader(dataset, batch_size=None, num_workers=2):
            batch["latents"]  # float32 (256, C, h, w), scaled

Only the entropy coder is loaded, never the network. See `codec.shards.order` for what comes when.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from codec.shards import fields
from codec.shards.decoding import LatentDecoder
from codec.shards.errors import ShardError
from codec.shards.forms import Content
from codec.shards.manifest import Manifest
from codec.shards.order import EpochOrder, Share
from codec.shards.samples import ChannelScaling, Sample
from codec.shards.turns import Turn, TurnReader, cut_turns

STATE_VERSION = 1
TURN = 16  # records that are decoded together where the dataset makes no batches
WINDOW = 2**15


class LatentDataset(IterableDataset[Sample]):
    """Yields records, or batches of records of one size.

    A record is {"latents" float32 (C, h, w), "key", "label", "label_id", "caption",
    "original_size" (width, height), "crop" (left, top, right, bottom), "flip"}; what is not known
    is "" or -1. A batch has the same keys, tensors with a first dimension and lists of texts.

    Attributes:
        manifest: Of the dataset.
        label_ids: A class number for each label.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        batch_size: int | None = None,
        shuffle: bool = True,
        seed: int = 0,
        raw: bool = False,
        scaling: Literal["model", "statistics"] = "model",
        decode: bool = True,
        sample_posterior: bool = False,
        drop_last: bool | None = None,
        window: int = WINDOW,
        turn_size: int = TURN,
        rank: int | None = None,
        world_size: int | None = None,
        model: str | None = None,
    ) -> None:
        """Opens a finished dataset.

        Args:
            directory: Of the dataset.
            batch_size: Yield batches of so many records, all with latents of one size; give the
                DataLoader `batch_size=None`. None to yield records.
            shuffle: Shuffle shards, and records within `window`, anew in each epoch.
            seed: Of the shuffling and of posterior samples.
            raw: Give latents as the network made them, not scaled.
            scaling: "model" scales as `Codec.encode` does, by the model's own factors;
                "statistics" to mean 0 and deviation 1 of each channel over this dataset.
            decode: False to yield the files ("lc": bytes) of a dataset of `.lc` files as they are.
            sample_posterior: Draw from the posterior, another draw in each epoch, instead of
                giving its mode.
            drop_last: Leave out what does not fill a batch, or does not go round all ranks; by
                default where it would matter, when shuffling.
            window: Least number of records that are shuffled together; their index is in memory.
            turn_size: Without `batch_size`: records in a row that come from one worker. With that
                of the DataLoader's batches their order does not depend on the number of workers.
            rank: Of this process; from torch.distributed or RANK by default.
            world_size: How many processes share the dataset; from WORLD_SIZE by default.
            model: Where to find the tables of `.lc` files, if not among the models at hand.

        Raises:
            ShardError: The dataset is not finished or damaged, or the arguments do not fit to it.
        """
        super().__init__()
        self._directory = Path(directory)
        self.manifest = Manifest.read(self._directory)
        self.label_ids = self.manifest.label_ids()
        self._rank, self._world_size = _processes(rank, world_size)
        self._turn_size = fields.as_integer(batch_size or turn_size, "batch_size", 1, 2**24)
        self._makes_batches = batch_size is not None
        self._shuffle = shuffle
        self._seed = fields.as_integer(seed, "seed", 0)
        self._window = fields.as_integer(window, "window", 1)
        matters = self._makes_batches or self._world_size > 1
        self._drop_last = shuffle and matters if drop_last is None else drop_last
        self._check(decode, sample_posterior)
        channels = self.manifest.latent_channels
        self._reader_settings: dict[str, Any] = {
            "decode": decode,
            "sample_posterior": sample_posterior,
            "seed": self._seed,
            # Each process loads the coder when it first decodes, and keeps it from epoch to epoch.
            "decoder": LatentDecoder(channels, self.manifest.factor, model),
            "scaling": None
            if raw
            else ChannelScaling.of_model(self.manifest.scaling, channels)
            if scaling == "model"
            else ChannelScaling.of_statistics(self.manifest.statistics),
        }
        # Shared with workers that stay from epoch to epoch: the epoch, and where it starts.
        self._position = torch.zeros(2, dtype=torch.int64)
        self._position.share_memory_()  # type: ignore[no-untyped-call]
        self._resumed: dict[str, int] | None = None
        self._state: dict[str, int] | None = None

    def set_epoch(self, epoch: int, consumed: int = 0) -> None:
        """Says which epoch comes next, and where in it to start; call it before each epoch.

        Args:
            epoch: 0 or more.
            consumed: How many records this rank has had of the epoch before; a whole number of
                batches. Ranks, workers and (for latents of one size) batches may be others than
                they were then.

        Raises:
            ShardError: The numbers are out of range, or not of whole batches.
        """
        fields.as_integer(epoch, "epoch", 0, 2**31)
        fields.as_integer(consumed, "consumed", 0)
        self._position[0], self._position[1] = epoch, consumed * self._world_size
        if self._resumed is not None and (consumed or self._resumed["epoch"] != epoch):
            self._resumed = None
        self._state = None

    def state_dict(self) -> dict[str, int]:
        """Says how far this process is, for `load_state_dict`.

        In the main process that is right without workers. With workers ask torchdata's
        StatefulDataLoader, which asks each worker; or count batches and use `set_epoch`.
        """
        if self._state is None:
            return self._state_at(int(self._position[0]), int(self._position[1]), 0, 0, 1)
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was; the next iteration starts there.

        Raises:
            ShardError: It is the state of something else.
        """
        names = ("epoch", "start", "turns", "skip", "turn_size", "workers", "world_size")
        if state.get("version") != STATE_VERSION:
            raise ShardError(
                f"found the state of version {state.get('version')!r}, expected {STATE_VERSION}; "
                "start the epoch over"
            )
        self._resumed = {name: fields.integer(state, name, 0) for name in names}
        self._position[0], self._position[1] = self._resumed["epoch"], self._resumed["start"]
        self._state = None

    def __len__(self) -> int:
        """How many batches, or records, this rank gets in an epoch."""
        turns = self._num_turns()
        mine = len(range(self._rank, turns, self._world_size))
        if self._makes_batches:
            return mine
        is_last_mine = mine > 0 and (turns - 1) % self._world_size == self._rank
        lacking = turns * self._turn_size - self.manifest.num_records
        return mine * self._turn_size - (max(lacking, 0) if is_last_mine else 0)

    def __iter__(self) -> Iterator[Sample]:
        """Yields this worker's share of the epoch.

        Raises:
            ShardError: A shard is damaged; the message names its file and the record's key.
        """
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        share = Share(self._rank, self._world_size, worker, num_workers)
        epoch, start, done, skip = self._begin(num_workers)
        self._state = self._state_at(epoch, start, done, skip, num_workers)
        counts = [shard.num_records for shard in self.manifest.shards]
        order = EpochOrder(counts, epoch, self._seed, self._shuffle, self._window)
        reader = TurnReader(self._directory, self.manifest, epoch=epoch, **self._reader_settings)
        mine = 0
        with reader:
            for turn in self._turns(reader, order, start, share):
                mine += 1
                if mine <= done:
                    continue
                for yielded, sample in enumerate(self._samples(reader, turn), start=1):
                    if mine == done + 1 and yielded <= skip:
                        continue
                    is_whole = self._makes_batches or yielded == len(turn.places)
                    self._state = self._state_at(
                        epoch,
                        start,
                        mine if is_whole else mine - 1,
                        0 if is_whole else yielded,
                        num_workers,
                    )
                    yield sample

    def _samples(self, reader: TurnReader, turn: Turn) -> Iterator[Sample]:
        if self._makes_batches:
            yield reader.batch(turn, self.label_ids)
        else:
            yield from reader.samples(turn, self.label_ids)

    def _turns(
        self, reader: TurnReader, order: EpochOrder, start: int, share: Share
    ) -> Iterator[Turn]:
        """Yields the turns of a share, from the place `start` in the epoch on."""
        left = self._num_turns(start)
        if not self._has_buckets:
            turns = cut_turns(reader.places(order, start), self._turn_size)
        else:
            turns = reader.bucketed_turns(order, self._turn_size)
        passed = start // self._turn_size if self._has_buckets else 0
        for number, turn in enumerate(turns):
            if number - passed >= left:
                return
            if number >= passed and share.has(number - passed):
                yield turn

    @property
    def _has_buckets(self) -> bool:
        """Whether batches must be put together of records of one size."""
        return self._makes_batches and len(self.manifest.grids) > 1

    def _num_turns(self, start: int = 0) -> int:
        """How many turns the epoch has from the place `start` on, for all ranks together."""
        size = self._turn_size
        if self._has_buckets:
            grids = self.manifest.grids.values()
            full = sum(count // size for count in grids)
            total = full if self._drop_last else sum(-(-count // size) for count in grids)
            turns = max(total - start // size, 0)
        else:
            left = max(self.manifest.num_records - start, 0)
            turns = left // size if self._drop_last else -(-left // size)
        return turns - turns % self._world_size if self._drop_last else turns

    def _begin(self, num_workers: int) -> tuple[int, int, int, int]:
        """Returns the epoch, the place where it starts, and turns and records to pass over."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            epoch, start = self._position.tolist()
            return epoch, self._checked(start), 0, 0
        same = resumed["turn_size"] == self._turn_size
        if same and resumed["workers"] == num_workers and resumed["world_size"] == self._world_size:
            return resumed["epoch"], resumed["start"], resumed["turns"], resumed["skip"]
        if resumed["workers"] != 1 or (resumed["skip"] and resumed["world_size"] != 1):
            raise ShardError(
                f"found the state of one of {resumed['workers']} workers, expected one of as many "
                "as now; use as many, or count batches and use set_epoch"
            )
        size = resumed["turn_size"] * resumed["world_size"]
        start = resumed["start"] + resumed["turns"] * size + resumed["skip"]
        return resumed["epoch"], self._checked(start), 0, 0

    def _checked(self, start: int) -> int:
        """Refuses places that are no ends of whole turns of all ranks, where that matters."""
        unit = self._turn_size * self._world_size
        if start % unit and (self._has_buckets or self._world_size > 1):
            raise ShardError(
                f"found {start} records of the epoch consumed, expected a multiple of {unit}, the "
                "records of a batch of all ranks; give a whole number of batches"
            )
        return start

    def _state_at(
        self, epoch: int, start: int, turns: int, skip: int, workers: int
    ) -> dict[str, int]:
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "start": start,
            "turns": turns,
            "skip": skip,
            "turn_size": self._turn_size,
            "workers": workers,
            "world_size": self._world_size,
        }

    def _check(self, decode: bool, sample_posterior: bool) -> None:
        form = self.manifest.form
        if sample_posterior and not form.posterior:
            raise ShardError(
                f"found {form.content} without a posterior in {self._directory}, expected one to "
                "sample from; write the dataset with it"
            )
        if not decode and form.content is not Content.LC:
            raise ShardError(
                f"found {form.content} in {self._directory}, expected .lc files where decode is "
                "False; leave it out"
            )


def _processes(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Returns rank and number of processes: as given, else torch.distributed's, else RANK's."""
    if (rank is None) != (world_size is None):
        raise ShardError("found a rank or a world size alone, expected both or neither")
    if rank is None or world_size is None:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        else:
            rank = int(os.environ.get("RANK", "0"))
            world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < world_size:
        raise ShardError(f"found rank {rank} of {world_size}, expected 0 to {world_size - 1}")
    return rank, world_size
