"""latent-codec sample, as its user runs it."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from codec import cli, console
from codec.prior.generation import SETTINGS_FILE
from codec.shards.contact import SHEET_FILE
from tests.codec.prior.tiny_priors import SIDE, write_tiny_prior
from tests.conftest import make_pixels

SIZE = 8 * SIDE
FAST = ["--steps", "2", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(scope="module")
def prior_dir(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_prior(tmp_path_factory.mktemp("priors") / "tiny", model_dir)


def sample(prior: Path, output: Path, *words: object) -> int:
    """The command's exit code."""
    line = ["sample", "--prior", prior, "-o", output, *FAST, *words]
    with pytest.raises(SystemExit) as ended:
        console.run(cli.app, [str(word) for word in line])
    return int(ended.value.code or 0)


def opened(path: Path) -> NDArray[np.int64]:
    with PIL.Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("0*.png"))}


def test_classes_take_turns_and_more_can_be_added(
    prior_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(prior_dir, tmp_path / "a", "-n", 4) == 0
    assert "4 images in" in capsys.readouterr().out
    first = pictures(tmp_path / "a")
    assert list(first) == [
        "0000-dress-seed0.png",
        "0001-hat-seed1.png",
        "0002-t-shirt-seed2.png",
        "0003-dress-seed3.png",
    ]
    assert len(set(first.values())) == 4
    assert opened(tmp_path / "a" / SHEET_FILE).shape[1] > 2 * 160
    # One that is gone is made again, two are added, the others stay.
    (tmp_path / "a" / "0001-hat-seed1.png").unlink()
    assert sample(prior_dir, tmp_path / "a", "-n", 6, "--batch-size", 1) == 0
    assert "3 images in" in capsys.readouterr().out
    again = pictures(tmp_path / "a")
    assert len(again) == 6
    for name in ("0000-dress-seed0.png", "0003-dress-seed3.png"):
        assert again[name] == first[name]
    before, after = (opened(tmp_path / "a" / n) for n in list(again)[:2])
    assert before.shape == after.shape == (SIZE, SIZE, 3)


def test_other_settings_do_not_mix(
    prior_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "a"
    assert sample(prior_dir, output, "-n", 1, "--class", "hat") == 0
    first = pictures(output)
    assert sample(prior_dir, output, "-n", 1, "--class", "hat", "--guidance", 5) == 1
    told = capsys.readouterr().err
    assert "made with guidance 3.0, expected 5.0" in told
    assert "--force" in told
    assert pictures(output) == first
    assert sample(prior_dir, output, "-n", 1, "--class", "hat", "--guidance", 5, "--force") == 0
    assert pictures(output) != first
    assert json.loads((output / SETTINGS_FILE).read_text())["guidance"] == 5.0


def test_a_wish_that_failed_leaves_the_folder_free(prior_dir: Path, tmp_path: Path) -> None:
    words = ["-n", 1, "--class", "hat"]
    assert sample(prior_dir, tmp_path / "a", *words, "--image", tmp_path / "nowhere.png") == 1
    assert sample(prior_dir, tmp_path / "a", *words) == 0
    assert len(pictures(tmp_path / "a")) == 1


def test_a_seed_is_an_image(prior_dir: Path, tmp_path: Path) -> None:
    assert sample(prior_dir, tmp_path / "a", "-n", 3, "--class", "hat", "--seed", 5) == 0
    assert sample(prior_dir, tmp_path / "b", "-n", 1, "--class", "hat", "--seed", 7) == 0
    assert sample(prior_dir, tmp_path / "c", "-n", 1, "--class", "none", "--seed", 7) == 0
    one = opened(tmp_path / "a" / "0002-hat-seed7.png")
    same = opened(tmp_path / "b" / "0000-hat-seed7.png")
    other = opened(tmp_path / "c" / "0000-seed7.png")
    assert np.abs(one - same).max() <= 1
    assert np.abs(one - other).max() > 1


def test_from_an_image_with_and_without_a_mask(prior_dir: Path, tmp_path: Path) -> None:
    image, mask = tmp_path / "image.png", tmp_path / "mask.png"
    PIL.Image.fromarray(make_pixels(SIZE, SIZE)).save(image)
    hole = np.zeros((SIZE, SIZE), np.uint8)
    hole[20:40, 20:40] = 255
    PIL.Image.fromarray(hole).save(mask)
    words = ["-n", 2, "--class", "hat", "--image", image]
    assert sample(prior_dir, tmp_path / "a", *words, "--strength", 0.5) == 0
    assert len(set(pictures(tmp_path / "a").values())) == 2
    assert sample(prior_dir, tmp_path / "b", *words, "--mask", mask) == 0
    for name in pictures(tmp_path / "b"):
        found = opened(tmp_path / "b" / name)
        assert (found[hole == 0] == make_pixels(SIZE, SIZE)[hole == 0]).all()


def test_ways_between_two(prior_dir: Path, tmp_path: Path) -> None:
    words = ["-n", 3, "--class", "hat"]
    assert sample(prior_dir, tmp_path / "seeds", *words, "--between-seeds", 1, 2) == 0
    assert sample(prior_dir, tmp_path / "one", "-n", 1, "--class", "hat", "--seed", 1) == 0
    way = [opened(p) for p in (tmp_path / "seeds").glob("0*.png")]
    assert len(way) == 3
    start = opened(tmp_path / "seeds" / "0000-hat.png")
    alone = opened(tmp_path / "one" / "0000-hat-seed1.png")
    assert np.abs(start - alone).max() <= 1
    for name, seed in (("a.png", 0), ("b.png", 5)):
        PIL.Image.fromarray(make_pixels(SIZE, SIZE, seed)).save(tmp_path / name)
    between = ["--between-images", tmp_path / "a.png", tmp_path / "b.png", "--strength", 0.3]
    assert sample(prior_dir, tmp_path / "images", *words, *between) == 0
    assert len(set(pictures(tmp_path / "images").values())) == 3


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--class", "coat"], 1, "found class 'coat' for tiny-unet, expected one of dress"),
        (["--sampler", "ddim"], 1, "sampler ddim for a prior of objective flow"),
        (["--top-k", 5], 1, "it is a diffusion prior"),
        (["--image", "nowhere.png"], 1, "nowhere.png"),
        (["--mask", "m.png"], 2, "goes with --image"),
        (["--between-seeds", 1, 2, "--image", "a.png"], 2, "give one of"),
        (["--between-seeds", 1, 2, "-n", 1], 2, "takes 2 images or more"),
        (["-n", 0], 2, "greater than or equal to 1"),
    ],
)
def test_wrong_use(
    prior_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[object],
    code: int,
    sentence: str,
) -> None:
    assert sample(prior_dir, tmp_path / "out", *words) == code
    assert sentence in capsys.readouterr().err
    assert pictures(tmp_path / "out") == {}


def test_a_prior_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(tmp_path / "nothing", tmp_path / "out") == 1
    assert "found no prior" in capsys.readouterr().err


def token_sample(prior: Path, output: Path, *words: object) -> int:
    line = ["sample", "--prior", prior, "-o", output, "--device", "cpu", "--dtype", "float32"]
    with pytest.raises(SystemExit) as ended:
        console.run(cli.app, [str(word) for word in [*line, *words]])
    return int(ended.value.code or 0)


def test_token_priors_are_drawn_from_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    from tests.codec.prior.token_priors import write_token_prior

    prior = write_token_prior(tmp_path)
    words = ["-n", 3, "--class", "shoe", "--top-k", 5, "--temperature", 0.8]
    assert token_sample(prior, tmp_path / "a", *words) == 0
    assert [opened(path).shape for path in sorted((tmp_path / "a").glob("0*.png"))] == [
        (32, 32, 3)
    ] * 3
    assert token_sample(prior, tmp_path / "b", *words, "--batch-size", 2) == 0
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
    assert token_sample(prior, tmp_path / "c", "-n", 1, "--sampler", "euler") == 1
    assert "it draws codes one after another" in capsys.readouterr().err
