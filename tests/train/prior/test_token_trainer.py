"""A run of a token prior: its data, its records, and the directory that it becomes."""

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
import yaml
from accelerate import Accelerator

from codec import Codec, console
from codec.dataset import running
from codec.dataset.preprocess import center_square
from codec.errors import LatentCodecError
from codec.images import load
from codec.prior.token_layout import TokenLayout
from codec.prior.token_model import new_model
from codec.prior.tokens import TokenPrior
from eval import cli as eval_cli
from eval.coded_files import open_coded
from eval.token_prior import NoImagesError, measure_tokens
from tests.codec.dataset.jobs import make_dataset, run_serial, settings_of
from tests.codec.foreign_models import save_model
from tests.train.prior.token_runs import CLASSES, token_config, write_images
from train.config import known_keys, load_config
from train.entropy.frozen_codes import FrozenCodes
from train.prior.token_codes import TokenSet, open_token_codec, training_tokens
from train.prior.token_dataset import TokenDataset
from train.prior.token_sections import TokenPriorConfig
from train.prior.token_step import TokenForward, parameter_groups
from train.records import config_text
from train.release.folders import ExportError
from train.release.token_prior import export_tokens
from train.report import report_run
from train.state import best_checkpoint, latest_good, list_checkpoints
from train.token_trainer import TokenTrainer, build_token_model, describe

CONFIG = Path(__file__).resolve().parents[3] / "configs" / "prior" / "tokens-clothing.yaml"


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("vq", tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "train", 3)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "validation", 2, start=5)


@pytest.fixture(scope="module")
def run_dir(
    images: Path, held_out: Path, codec: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run; do not change it: copy it first."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    run = {"validation_folder": str(held_out), "validation_every": 4, "validation_samples": 3}
    TokenTrainer(token_config(folder, images, codec, run=run)).run()
    return folder


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("exported") / "prior"
    export(run_dir, output)
    return output


def export(run_dir: Path, output: Path, **settings: Any) -> Any:
    config = load_config(run_dir / "config.yaml")
    checkpoint = best_checkpoint(run_dir) if settings.get("best") else latest_good(run_dir)
    assert checkpoint is not None
    return export_tokens(config, run_dir, checkpoint, output, **settings)  # type: ignore[arg-type]


def some_set(count: int, num_classes: int = 2) -> TokenSet:
    """Random sequences of four codes."""
    layout = TokenLayout((8,), ((2, 2),), num_classes)
    random = np.random.default_rng(0)
    return TokenSet(
        tokens=random.integers(0, 8, (count, 4), np.int32),
        labels=random.integers(0, num_classes, count),
        class_names=tuple(map(str, range(num_classes))),
        layout=layout,
        num_images=count,
        unreadable={},
        fingerprint={},
    )


class TestData:
    def test_tokens_are_the_codes_of_files(self, images: Path, codec: Path) -> None:
        config = token_config(Path("unused"), images, codec)
        frozen = open_token_codec(str(codec))
        found = training_tokens(config, frozen, Accelerator(cpu=True))
        assert found.class_names == CLASSES
        assert (found.num_images, found.tokens.shape) == (6, (12, 16))
        assert found.labels.tolist() == [0] * 6 + [1] * 6
        opened = Codec.from_pretrained(codec)
        square = center_square(load(images / "shoe" / "1.png").pixels, 32)
        for row, pixels in ((8, square), (9, np.ascontiguousarray(square[:, ::-1]))):
            coded = open_coded(opened, opened.compress(pixels))
            (grid,) = found.layout.to_indices(found.tokens[row])
            np.testing.assert_array_equal(grid, coded.planes[0])
        plain = token_config(
            Path("unused"), images, codec, tokens={"labels": False}, data={"flip": False}
        )
        bare = training_tokens(plain, frozen, Accelerator(cpu=True))
        assert (bare.class_names, set(bare.labels)) == ((), {-1})
        np.testing.assert_array_equal(bare.tokens, found.tokens[::2])
        assert bare.fingerprint["sha256"] != found.fingerprint["sha256"]

    def test_what_cannot_be_read_is_left_out_with_its_class(
        self, images: Path, codec: Path, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        shutil.copytree(images, copy)
        (copy / "hat" / "1.png").write_bytes(b"no image")
        found = training_tokens(
            token_config(tmp_path, copy, codec),
            open_token_codec(str(codec)),
            Accelerator(cpu=True),
        )
        assert found.labels.tolist() == [0] * 4 + [1] * 6
        assert [Path(key).name for key in found.unreadable] == ["1.png"]

    def test_each_sequence_is_one_sample_in_an_epoch(self) -> None:
        dataset = TokenDataset(some_set(10), seed=1, label_dropout=0)
        for epoch in range(2):
            numbers = [dataset.sequence_number(10 * epoch + i) for i in range(10)]
            assert sorted(numbers) == list(range(10))
        whole = dataset.batch(range(12))
        assert torch.equal(dataset.batch(range(7, 12)).tokens, whole.tokens[7:])
        shares = [next(dataset.batches(4, 3, rank, 2)) for rank in range(2)]
        assert torch.equal(torch.cat([share.tokens for share in shares]), whole.tokens[4:10])

    def test_so_many_classes_are_left_out(self) -> None:
        data = some_set(50)
        null = data.layout.class_token(None)
        kept = TokenDataset(data, seed=1, label_dropout=0).batch(range(2000)).class_tokens
        assert not (kept == null).any()
        some = TokenDataset(data, seed=1, label_dropout=0.25).batch(range(2000)).class_tokens
        assert float((some == null).float().mean()) == pytest.approx(0.25, abs=0.03)
        assert torch.equal(some[some != null], kept[some != null])

    @pytest.mark.parametrize(
        ("sections", "message"),
        [
            ({"tokens": {"codec": "kl-f8d4"}}, r"found continuous latents in tokens\.codec"),
            ({"tokens": {"heads": 3}}, r"expected a multiple of tokens\.heads 3"),
            ({"tokens": {"widht": 3}}, r"did you mean tokens\.width"),
            ({"data": {"size": 2**15}}, "found 16777216 codes in an image of 32768x32768"),
            ({"data": {"shards": "x"}}, r"found data\.shards beside images"),
            ({"run": {"validation_folder": "WRONG"}}, "held-out images of class cat"),
        ],
    )
    def test_what_cannot_be_trained_is_refused(
        self, images: Path, codec: Path, tmp_path: Path, sections: dict[str, Any], message: str
    ) -> None:
        if "run" in sections:
            shutil.copytree(images / "hat", tmp_path / "held-out" / "cat")
            sections = {"run": {"validation_folder": str(tmp_path / "held-out")}}
        with pytest.raises(LatentCodecError, match=message):
            TokenTrainer(token_config(tmp_path / "run", images, codec, **sections))
        assert not (tmp_path / "run").exists()


class TestLearning:
    def test_one_batch_is_learned_by_heart(self) -> None:
        torch.manual_seed(0)
        data = some_set(8)
        forward = TokenForward(new_model(data.layout, width=32, layers=2, heads=2), data.layout)
        batch = TokenDataset(data, seed=0, label_dropout=0).batch(range(8))
        optimizer = torch.optim.AdamW(parameter_groups(forward, 0.01), lr=1e-2)
        first = float(forward(*batch).detach().mean()) / 4
        for _ in range(80):
            optimizer.zero_grad()
            loss = forward(*batch).sum() / batch.num_symbols
            loss.backward()
            optimizer.step()
        assert first > 2.8
        assert float(loss.detach()) < 0.9  # log2(8) / 4 for the first code, which nothing tells

    def test_matrices_alone_decay(self) -> None:
        model = new_model(TokenLayout((8,), ((2, 2),), 2), width=8, layers=1, heads=1)
        decaying, others = parameter_groups(model, 0.1)
        assert (decaying["weight_decay"], others["weight_decay"]) == (0.1, 0)
        assert {p.ndim for p in decaying["params"]} == {2}
        assert {p.ndim for p in others["params"]} == {1}
        count = len(decaying["params"]) + len(others["params"])
        assert count == len(list(model.parameters()))


class TestConfiguration:
    def test_the_shipped_one_is_complete_and_as_it_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LATENT_CODEC_SHARED", "shared")
        config = load_config(CONFIG)
        stated = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
        assert isinstance(config, TokenPriorConfig)
        keys = {f"{section}.{key}" for section, part in stated.items() for key in part}
        assert keys == set(known_keys(TokenPriorConfig))
        assert config.data.folders == ("shared/data/clothing/train",)
        layout = TokenLayout((1024,), ((16, 16),), 10)
        count = sum(p.numel() for p in build_token_model(config.tokens, layout).parameters())
        assert 2 * count < 2**24  # in fp16

    def test_resolved_settings_are_a_configuration(
        self, images: Path, codec: Path, tmp_path: Path
    ) -> None:
        config = token_config(tmp_path, images, codec)
        (tmp_path / "config.yaml").write_text(config_text(config))
        assert load_config(tmp_path / "config.yaml") == config


class TestRun:
    def test_it_says_what_it_would_do(self, images: Path, codec: Path) -> None:
        sentence = describe(token_config(Path("unused"), images, codec))
        assert "6 images of 2 classes" in sentence
        assert "16 tokens an image of 32x32 pixels, codes of LatentAutoencoder, of 32" in sentence

    def test_records(self, run_dir: Path, codec: Path, held_out: Path) -> None:
        lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
        assert [line["images"] for line in lines if "val/bpp" in line] == [4, 8]
        last = lines[-1]
        names = {name for name in last if name.startswith("val/")}
        assert names == {"val/bpp"} | {
            f"val/{name}bits_per_symbol" for name in ("", "null_", "tables_", "order0_")
        }
        assert last["val/bpp"] == pytest.approx(last["val/bits_per_symbol"] * 16 / 32**2, rel=1e-5)
        assert json.loads((run_dir / "data.json").read_text())["class_names"] == list(CLASSES)
        assert len(list((run_dir / "pictures").glob("samples-*.png"))) == 2
        assert "val/bits_per_symbol" in report_run(run_dir).figures
        with pytest.raises(LatentCodecError, match="--resume"):
            TokenTrainer(load_config(run_dir / "config.yaml"))  # type: ignore[arg-type]

    def test_a_budget_of_time_stops_it(self, images: Path, codec: Path, tmp_path: Path) -> None:
        run = {"max_images": 10**6, "max_minutes": 1e-9}
        trainer = TokenTrainer(token_config(tmp_path / "run", images, codec, run=run))
        assert trainer.run().steps == 1

    @pytest.mark.parametrize("precision", ["no", "bf16"])
    def test_resume_equals_uninterrupted(
        self,
        images: Path,
        codec: Path,
        tmp_path: Path,
        states: Callable[[Path], dict[str, torch.Tensor]],
        assert_same: Callable[..., None],
        precision: str,
    ) -> None:
        stopped, whole = tmp_path / "stopped", tmp_path / "whole"
        run = {"mixed_precision": precision, "gradient_accumulation_steps": 2}
        trainer = TokenTrainer(token_config(stopped, images, codec, run=run))
        step = trainer.stepper.run

        def interrupted(*arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        trainer.stepper.run = interrupted  # type: ignore[method-assign]
        assert trainer.run().steps == 1
        torch.rand(7)  # the state of torch's generator plays no part
        TokenTrainer(token_config(stopped, images, codec, run=run), resume=True).run()
        TokenTrainer(token_config(whole, images, codec, run=run)).run()
        assert len(list_checkpoints(whole)) == 1
        assert_same(states(stopped), states(whole))


class TestExport:
    def test_the_prior_is_the_averaged_model(
        self, exported: Path, run_dir: Path, held_out: Path, images: Path, codec: Path
    ) -> None:
        prior = TokenPrior.from_pretrained(exported, dtype="float32")
        assert (prior.info.kind, prior.info.codec) == ("tokens", "codec")
        assert prior.info.class_names == CLASSES
        paths = sorted(held_out.glob("*/*.png"))
        pixels = [center_square(load(path).pixels, 32) for path in paths]
        indices = [prior.encode(np.ascontiguousarray(one)) for one in pixels]
        labels = [CLASSES.index(path.parent.name) for path in paths]
        last = json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])
        for name, classes in (("", labels), ("null_", [None] * 4)):
            bits = prior.bits(indices, classes).mean() / 16
            assert bits == pytest.approx(last[f"val/{name}bits_per_symbol"], rel=1e-3)  # fp16

    def test_transformers_and_the_codec_take_their_parts(self, exported: Path) -> None:
        import transformers

        model = transformers.GPT2LMHeadModel.from_pretrained(exported)
        assert model.config.n_positions == 16
        assert Codec.from_pretrained(exported / "codec").codes is not None
        for path in exported.rglob("*"):
            assert path.is_dir() or path.stat().st_mode & 0o777 == 0o644

    def test_the_card_says_what_was_recorded(self, exported: Path, run_dir: Path) -> None:
        card = (exported / "README.md").read_text()
        last = json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])
        for name in ("", "null_", "tables_", "order0_"):
            bits = last[f"val/{name}bits_per_symbol"]
            assert f"| {bits:.4f} | {bits * 16 / 1024:.5f} |" in card
        assert "of the classes hat, shoe." in card
        assert "Data: 6 images of train and their mirrored copies" in card
        assert str(run_dir.parent) not in card
        assert str(exported.parent) not in card

    def test_the_best_and_what_is_refused(self, run_dir: Path, tmp_path: Path) -> None:
        info = export(run_dir, tmp_path / "best", best=True, name="mine", licence="CC0-1.0")
        assert (info.name, info.license_name) == ("mine", "CC0-1.0")
        with pytest.raises(ExportError, match="already exists"):
            export(run_dir, tmp_path / "best")
        changed = tmp_path / "changed"
        shutil.copytree(run_dir, changed)
        config = load_config(run_dir / "config.yaml", [f"codec={save_model('vq2', tmp_path)}"])
        (changed / "config.yaml").write_text(config_text(config))
        with pytest.raises(ExportError, match="expected those that the run was on"):
            export(changed, tmp_path / "output")
        assert not (tmp_path / "output").exists()


class TestMeasuring:
    def test_figures(self, exported: Path, held_out: Path, tmp_path: Path) -> None:
        prior = TokenPrior.from_pretrained(exported, dtype="float32")
        paths = sorted(held_out.glob("*/*.png"))
        report = measure_tokens(prior, paths, folder=held_out, rounds=1)
        costs = {cost.model: cost for cost in report.costs}
        labels = [CLASSES.index(path.parent.name) for path in paths]
        pixels = [np.ascontiguousarray(center_square(load(p).pixels, 32)) for p in paths]
        bits = prior.bits([prior.encode(one) for one in pixels], labels)
        own = costs["token prior, given the class"]
        assert own.bits_per_code == pytest.approx(bits.mean() / 16)
        assert own.bpp == pytest.approx(bits.mean() / 1024)
        assert costs["every code as likely"].bits_per_code == 5
        files = [len(prior.codec.compress(one)) for one in pixels]
        assert costs["whole files"].bpp == pytest.approx(8 * np.mean(files) / 1024)
        assert [(entry.name, entry.num_images) for entry in report.classes] == [
            (name, 2) for name in CLASSES
        ]
        assert report.times is not None
        assert report.times.same
        written = json.loads(report.write(tmp_path).read_text())
        assert written["times"]["ratio"] == pytest.approx(report.times.ratio)

    def test_the_command(
        self,
        exported: Path,
        held_out: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        words = ["prior-tokens", str(exported), str(held_out), "-o", str(tmp_path), "--rounds", "0"]
        for extra in ([], ["--json", "--limit", "1"]):
            with pytest.raises(SystemExit) as exit_info:
                console.run(eval_cli.app, [*words, *extra, "--dtype", "fp32"])
            assert not exit_info.value.code
        text, _, report = capsys.readouterr().out.partition("{")
        assert "mean of 4 images of 32x32 pixels" in " ".join(text.split())
        assert "token prior, without the class" in text
        assert json.loads("{" + report)["num_images"] == 1
        assert (tmp_path / "prior-tokens.json").is_file()

    def test_images_of_no_class_fail(self, exported: Path, held_out: Path, tmp_path: Path) -> None:
        prior = TokenPrior.from_pretrained(exported, dtype="float32")
        shutil.copytree(held_out / "hat", tmp_path / "cat")
        with pytest.raises(NoImagesError, match=r"found class 'cat'.*one of hat, shoe"):
            measure_tokens(prior, sorted((tmp_path / "cat").glob("*.png")), rounds=0)


class TestShards:
    @pytest.fixture
    def dataset(
        self, images: Path, codec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Path:
        monkeypatch.setattr(running, "run_local", run_serial)
        make_dataset(images, tmp_path / "latents", settings_of(codec))
        return tmp_path / "latents"

    def test_the_codes_of_a_dataset_are_those_of_its_images(
        self, dataset: Path, images: Path, codec: Path, tmp_path: Path
    ) -> None:
        frozen = FrozenCodes(
            Codec.from_pretrained(codec, dtype="float32"),
            codec,
            open_token_codec(str(codec)).info,
            open_token_codec(str(codec)).codes,
        )
        accelerator = Accelerator(cpu=True)
        shards = {"folders": [], "shards": str(dataset)}
        config = token_config(tmp_path / "run", images, codec, data=shards)
        found = training_tokens(config, frozen, accelerator)
        plain = token_config(tmp_path / "run", images, codec, data={"flip": False})
        expected = training_tokens(plain, frozen, accelerator)
        rows = [np.column_stack([one.labels, one.tokens]).tolist() for one in (found, expected)]
        assert sorted(rows[0]) == sorted(rows[1])
        assert found.class_names == CLASSES
        assert "6 images of 2 classes" in describe(config)
        TokenTrainer(config).run()
        assert export(tmp_path / "run", tmp_path / "prior").class_names == CLASSES

    def test_of_another_size_or_codec(
        self, dataset: Path, images: Path, codec: Path, tmp_path: Path
    ) -> None:
        shards = {"folders": [], "shards": str(dataset)}
        for sections, message in (
            ({"data": {**shards, "size": 64}}, "found latents of 4x4 cells .* expected 8x8 alone"),
            (
                {"data": shards, "tokens": {"codec": str(save_model("vq2", tmp_path))}},
                r"found latents \w+ in .* expected those of LatentAutoencoder",
            ),
        ):
            with pytest.raises(LatentCodecError, match=message):
                TokenTrainer(token_config(tmp_path / "run", images, codec, **sections))
