"""prior.json, and how a prior finds its codec."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from codec.errors import LatentCodecError
from codec.prior.directory import (
    PRIOR_FILE,
    PriorError,
    embedded_priors,
    find_prior,
    load_codec,
    read_prior,
    write_prior,
)
from tests.codec.prior.tiny_priors import CLASSES, write_tiny_prior

GOOD: dict[str, Any] = {
    "name": "p",
    "kind": "diffusion",
    "codec": "kl-f8d4",
    "latent_id": "0123456789abcdef",
    "class_names": ["a", "b"],
    "size": (64, 32),
    "license_name": "CC0-1.0",
    "summary": "For tests.",
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = write_prior(tmp_path, **GOOD)
    assert read_prior(tmp_path) == info
    assert info.size == (64, 32)
    assert info.class_number("b") == 1
    with pytest.raises(PriorError, match="found class 'c' for p, expected one of a, b"):
        info.class_number("c")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "gan"},
        {"class_names": ["a", "a"]},
        {"class_names": ["a", 1]},
        {"size": (0, 64)},
        {"size": (64,)},
        {"name": ""},
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(PriorError, match="expected a value of another kind or range"):
        write_prior(tmp_path, **GOOD | change)
    assert not (tmp_path / PRIOR_FILE).exists()


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(PriorError, match=r"found no prior\.json"):
        read_prior(tmp_path)
    write_prior(tmp_path, **GOOD)
    content = json.loads((tmp_path / PRIOR_FILE).read_text())
    for change, sentence in (
        ({"format_version": 2}, "found format_version 2"),
        ({"size": None}, "found size = None"),
    ):
        (tmp_path / PRIOR_FILE).write_text(json.dumps(content | change))
        with pytest.raises(PriorError, match=sentence):
            read_prior(tmp_path)
    del content["codec"]
    (tmp_path / PRIOR_FILE).write_text(json.dumps(content))
    with pytest.raises(PriorError, match="found no 'codec'"):
        read_prior(tmp_path)
    (tmp_path / PRIOR_FILE).write_text("{")
    with pytest.raises(LatentCodecError):
        read_prior(tmp_path)


def test_priors_are_found_by_name_and_place(tmp_path: Path) -> None:
    write_prior(tmp_path, **GOOD)
    assert find_prior(tmp_path) == tmp_path
    for info in embedded_priors():
        assert find_prior(info.name) == info.directory
    with pytest.raises(PriorError, match="found no prior 'nothing'"):
        find_prior("nothing")


def test_the_codec_is_the_one_of_its_latents(
    model_dir: Path, other_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_tiny_prior(tmp_path / "prior", model_dir)
    info = read_prior(directory)
    assert info.class_names == CLASSES
    assert load_codec(info, "cpu").info is not None
    # Another codec in its place is refused,
    shutil.rmtree(directory / "codec")
    shutil.copytree(other_model_dir, directory / "codec")
    with pytest.raises(PriorError, match=f"expected latents {info.latent_id}"):
        load_codec(info, "cpu")
    # and without any, one with these latents is looked for among the models at hand.
    shutil.rmtree(directory / "codec")
    with pytest.raises(LatentCodecError):
        load_codec(info, "cpu")
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(model_dir))
    assert load_codec(info, "cpu").name == "tiny"
