"""A run on codes: its twin, its data, its records, and the codec that it becomes."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from codec import Codec
from codec.checkpoint import read_info
from codec.codes import codes_of
from codec.entropy.fit_indices import fit_frequencies, fit_trees
from codec.entropy.index_coder import IndexCoder
from codec.errors import LatentCodecError
from codec.images import load
from codec.packing import read_file
from eval.coded_files import open_coded
from tests.codec.foreign_models import DISCRETE, save_model
from tests.codec.index_coders import some_indices
from tests.train.entropy_runs import entropy_config, index_config
from train.config import load_config
from train.entropy.frozen_codes import code_vectors, join_planes, open_codes, split_planes
from train.entropy.held_out import encode_held_out
from train.entropy.index_crops import IndexDataset
from train.entropy.index_fit import quick_index_coder
from train.entropy.index_integers import integer_index_coder
from train.entropy.index_model import IndexModel
from train.entropy.sections import IndexConfig, IndicesConfig
from train.entropy_trainer import EntropyTrainer, describe
from train.records import config_text
from train.release.export import ExportError, export_run
from train.release.foreign import export_tables
from train.report import report_run

SIZES = (20, 37)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An autoencoder with two levels of codes, without a coder."""
    return save_model("vq2", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def counted(plain: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a coder learned in passing."""
    output = tmp_path_factory.mktemp("counted") / "counted"
    export_tables(str(plain), [str(photos)], output, licence="CC0-1.0")
    return output


@pytest.fixture(scope="module")
def run_dir(photos: Path, counted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on it; do not change it: copy it first."""
    folder = tmp_path_factory.mktemp("indices") / "run"
    run = {"validation_folder": str(photos), "validation_images": 2}
    EntropyTrainer(index_config(folder, photos, counted, run=run)).run()
    return folder


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "smaller"
    assert export_run(run_dir, output)
    return output


def planes_of(indices: tuple[np.ndarray, ...]) -> torch.Tensor:
    """Indices of two levels as a run has them."""
    top, bottom = (torch.from_numpy(grid.astype(np.int64)) for grid in indices)
    return torch.stack([top.repeat_interleave(2, 0).repeat_interleave(2, 1), bottom])[None]


class TestTwin:
    def started(self) -> IndexModel:
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        vectors = [random.normal(size=(size, 4)) for size in SIZES]
        model = IndexModel(SIZES, IndicesConfig(values=3, units=8, features=5))
        model.start(fit_trees([some_indices(SIZES, (8, 8))], vectors), vectors)
        return model

    def test_at_first_it_is_near_the_frequency_tables(self) -> None:
        model = self.started()
        for book in model.codebooks:
            torch.nn.init.zeros_(book.nodes)
        random = np.random.default_rng(0)
        vectors = [random.normal(size=(size, 4)) for size in SIZES]
        tables = fit_frequencies([some_indices(SIZES, (8, 8))], vectors)
        indices = some_indices(SIZES, (6, 5), 3)
        with torch.no_grad():
            bits = float(model(planes_of(indices)))
        assert bits == pytest.approx(tables.estimate_bits(indices), rel=2e-3)

    def test_the_integers_say_what_the_floats_say(self) -> None:
        model = self.started()
        with torch.no_grad():
            for book in model.codebooks:
                book.nodes.normal_(std=0.5)
        indices = some_indices(SIZES, (6, 5), 3)
        coder = integer_index_coder(model, [])
        with torch.no_grad():
            bits = float(model(planes_of(indices)))
        assert coder.estimate_bits(indices) == pytest.approx(bits, rel=2e-3)

    def test_it_learns_what_is_around(self) -> None:
        """Each row repeats one code: 5 bits an index without context, next to none with it."""
        torch.manual_seed(0)
        random = np.random.default_rng(0)
        images = [(np.tile(random.integers(0, 32, (16, 1), np.int32), (1, 16)),) for _ in range(16)]
        vectors = [random.normal(size=(32, 4))]
        model = IndexModel((32,), IndicesConfig(values=4, units=24, features=16))
        model.start(fit_trees(images, vectors), vectors)
        planes = torch.stack([torch.from_numpy(grid.astype(np.int64))[None] for (grid,) in images])
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
        first = float(model(planes).mean().detach()) / 256
        for _ in range(60):
            optimizer.zero_grad()
            loss = model(planes).mean() / 256
            loss.backward()
            optimizer.step()
        assert first > 4.5
        assert float(loss.detach()) < 1.5
        coder = integer_index_coder(model, images)
        assert coder.estimate_bits(images[0]) < 256 * 1.7
        found = coder.decode(coder.encode(images[0]), [(16, 16)])
        assert np.array_equal(found[0], images[0][0])

    def test_an_export_learns_as_far_as_its_images_go(self) -> None:
        random = np.random.default_rng(0)
        vectors = [random.normal(size=(16, 4)), random.normal(size=(16, 4))]
        images = []
        for _ in range(6):
            top = random.integers(0, 16, (32, 32), np.int32)
            images.append((top, top.repeat(2, axis=0).repeat(2, axis=1)))  # 0 bits below the top
        state = torch.random.get_rng_state()
        coder = quick_index_coder(images, vectors)
        assert torch.equal(torch.random.get_rng_state(), state)
        tables = fit_frequencies(images, vectors)
        assert coder.estimate_bits(images[0]) < 0.9 * tables.estimate_bits(images[0])
        again = quick_index_coder(images, vectors)
        assert again.encode(images[0]) == coder.encode(images[0])
        few = quick_index_coder([some_indices((16, 16), (2, 2))], vectors)  # nothing to learn from
        indices = some_indices((16, 16), (3, 2))
        for one, other in zip(
            few.decode(few.encode(indices), [(3, 2), (6, 4)]), indices, strict=True
        ):
            assert np.array_equal(one, other)


class TestData:
    def test_crops_keep_the_levels_together(self, plain: Path, photos: Path) -> None:
        config = index_config(Path("unused"), photos, plain)
        frozen = open_codes(str(plain))
        dataset = IndexDataset(config, frozen, Accelerator(cpu=True))
        batch = dataset.batch(range(40))
        assert batch.planes.shape == (40, 2, 8, 8)
        assert batch.num_symbols == 40 * (16 + 64)
        top = batch.planes[:, 0]
        assert torch.equal(top[:, ::2, ::2], top[:, 1::2, 1::2])
        assert (5, 4) in {image[0].shape for image in dataset.images()}  # of 80x64 pixels
        assert torch.equal(dataset.batch([7]).planes, batch.planes[7:8])

    def test_indices_are_those_of_files(self, plain: Path, photos: Path) -> None:
        frozen = open_codes(str(plain))
        codec = Codec.from_pretrained(plain)
        data = codec.compress(photos / "image2.png")
        found = frozen.indices(frozen.encode(load(photos / "image2.png").pixels))
        for grid, coded in zip(found, open_coded(codec, data).planes, strict=True):
            assert np.array_equal(grid, coded)

    @pytest.mark.parametrize("name", DISCRETE)
    def test_code_vectors_are_the_latents_of_codes(self, name: str) -> None:
        torch.manual_seed(0)
        codes = codes_of(DISCRETE[name]())
        assert codes is not None
        side = max(codes.strides)
        for number, vectors in enumerate(code_vectors(codes)):
            assert len(vectors) == codes.sizes[number]
            for code in (1, len(vectors) - 1):
                grids = [np.zeros((side // s, side // s), np.int32) for s in codes.strides]
                grids[number][:] = code
                latents = codes.to_latents(tuple(grids))
                np.testing.assert_array_equal(latents[:, 0, 0], vectors[code])

    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            ({"data": {"latent_crop": 9}}, "expected a multiple of 2"),
            ({"indices": {"codec": "nowhere/at-all-"}}, "nowhere"),
            ({"indices": {"codec": "kl-f8d4"}}, "expected an autoencoder with codes"),
            ({"indices": {"unit": 8}}, r"unknown key indices\.unit; did you mean indices\.units"),
        ],
    )
    def test_what_cannot_be_trained_is_refused(
        self, plain: Path, photos: Path, tmp_path: Path, sections: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(LatentCodecError, match=message):
            EntropyTrainer(index_config(tmp_path / "run", photos, plain, **sections))
        assert not (tmp_path / "run").exists()

    def test_latents_have_another_section(self, plain: Path, photos: Path, tmp_path: Path) -> None:
        config = entropy_config(tmp_path / "run", photos, plain)
        with pytest.raises(LatentCodecError, match=r"configs/entropy/indices-vq-f8\.yaml"):
            EntropyTrainer(config)


class TestRun:
    def test_it_says_what_it_would_do(self, plain: Path, photos: Path) -> None:
        sentence = describe(index_config(Path("unused"), photos, plain))
        assert "6 images" in sentence
        assert "crops of 8x8 latents of LatentAutoencoder, 64 pixels a side" in sentence
        assert "of 32 and 32 codes" in sentence

    def test_held_out_figures_are_those_of_the_coders(
        self, run_dir: Path, counted: Path, photos: Path
    ) -> None:
        lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
        last = lines[-1]
        names = {name for name in last if name.startswith("val/")}
        assert names == {
            f"val/{coder}bits_per_symbol" for coder in ("", "tables_", "order0_", "present_")
        }
        frozen = open_codes(str(counted))
        coder = frozen.present_coder()
        assert isinstance(coder, IndexCoder)
        config = load_config(run_dir / "config.yaml")
        planes = encode_held_out(config, frozen, Accelerator(cpu=True))
        assert planes is not None
        images = [frozen.indices(image) for image in planes]
        bits = sum(coder.estimate_bits(image) for image in images)
        count = sum(grid.size for image in images for grid in image)
        assert last["val/present_bits_per_symbol"] == pytest.approx(bits / count)
        assert "val/bits_per_symbol" in report_run(run_dir).figures

    def test_resume_equals_uninterrupted(
        self,
        photos: Path,
        counted: Path,
        tmp_path: Path,
        states: Callable[[Path], dict[str, torch.Tensor]],
        assert_same: Callable[..., None],
    ) -> None:
        stopped, whole = tmp_path / "stopped", tmp_path / "whole"
        trainer = EntropyTrainer(index_config(stopped, photos, counted))
        step = trainer.stepper.run

        def interrupted(*arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        trainer.stepper.run = interrupted  # type: ignore[method-assign]
        assert trainer.run().steps == 1
        EntropyTrainer(index_config(stopped, photos, counted), resume=True).run()
        EntropyTrainer(index_config(whole, photos, counted)).run()
        assert_same(states(stopped), states(whole))


class TestExport:
    def test_the_autoencoder_stays_and_files_come_back(
        self, exported: Path, counted: Path, photos: Path
    ) -> None:
        before, after = read_info(counted), read_info(exported)
        after.verify()
        assert after.latent_id == before.latent_id
        assert after.earlier_coders == (before.coder_id,)
        assert (after.default_quality, after.quality_50_step) == (None, None)
        assert after.summary.endswith(", context model")
        old, new = Codec.from_pretrained(counted), Codec.from_pretrained(exported)
        assert isinstance(new.coder, IndexCoder)
        data = new.compress(photos / "image3.png")
        file = read_file(data)
        assert (file.header.coder_id, file.tables) == (after.coder_id, None)
        earlier = old.compress(photos / "image3.png")
        for one in (data, earlier):
            assert np.array_equal(new.reconstruct(one).pixels, old.reconstruct(earlier).pixels)

    def test_damaged_files_are_typed_errors(self, exported: Path, photos: Path) -> None:
        codec = Codec.from_pretrained(exported)
        data = bytearray(codec.compress(photos / "image3.png"))
        for place in range(len(data)):
            changed = bytes(data[:place]) + bytes([data[place] ^ 0x55]) + bytes(data[place + 1 :])
            with pytest.raises(LatentCodecError):
                codec.reconstruct(changed)

    def test_the_card_says_what_was_measured(self, run_dir: Path, exported: Path) -> None:
        card = (exported / "README.md").read_text()
        assert card.count("## Entropy model") == 1
        assert "A context model of the codes' indices" in card
        assert "frequency tables" in card
        last = json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])
        row = [f"{last[f'val/{n}bits_per_symbol']:.4f}" for n in ("", "tables_", "order0_")]
        assert f"| - | {' | '.join(row)} |" in card
        assert str(run_dir.parent) not in card

    def test_the_coder_is_that_of_the_run(self, run_dir: Path, exported: Path) -> None:
        coder = Codec.from_pretrained(exported).coder
        assert isinstance(coder, IndexCoder)
        assert coder.codebooks[1].nodes.shape == (31, 4)
        assert coder.codebooks[1].values.shape == (3, 32)

    def test_a_quality_and_another_autoencoder_are_refused(
        self, run_dir: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ExportError, match="the model has codes"):
            export_run(run_dir, tmp_path / "output", quality_50_step=0.5)
        changed = tmp_path / "changed"
        shutil.copytree(run_dir, changed)
        torch.manual_seed(9)
        DISCRETE["vq2"]().save_pretrained(tmp_path / "other")
        config = load_config(run_dir / "config.yaml", [f"codec={tmp_path / 'other'}"])
        assert isinstance(config, IndexConfig)
        (changed / "config.yaml").write_text(config_text(config))
        with pytest.raises(ExportError, match="expected those that the run was on"):
            export_run(changed, tmp_path / "output")
        assert not (tmp_path / "output").exists()

    def test_a_model_of_codes_of_diffusers_gets_tables(self, photos: Path, tmp_path: Path) -> None:
        plain = save_model("vqmodel", tmp_path / "plain")
        info = export_tables(str(plain), [str(photos)], tmp_path / "codec", licence="CC0-1.0")
        assert info.summary == "VQModel, f2, 3 channels, tables fitted on 6 images"
        assert "there is no quality to choose" in (tmp_path / "codec" / "README.md").read_text()
        codec, own = Codec.from_pretrained(tmp_path / "codec"), Codec.from_pretrained(plain)
        data = codec.compress(photos / "image1.png")
        assert np.array_equal(
            codec.reconstruct(data).pixels,
            own.reconstruct(own.compress(photos / "image1.png")).pixels,
        )
        with pytest.raises(ExportError, match="the model has codes"):
            export_tables(
                str(plain), [str(photos)], tmp_path / "x", licence="MIT", default_quality=9
            )


def test_planes_are_split_as_they_were_joined() -> None:
    top, bottom = some_indices((9, 9), (2, 3))
    planes = join_planes((top, bottom))
    assert np.array_equal(planes[0], top.repeat(2, axis=0).repeat(2, axis=1))
    for one, other in zip(split_planes(planes, (2, 1)), (top, bottom), strict=True):
        np.testing.assert_array_equal(one, other)
