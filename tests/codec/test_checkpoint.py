"""Ids, codec.json, and who may decode what."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from codec import catalog, checkpoint, identity
from codec.catalog import UnknownModelError
from codec.identity import ModelError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "copied"))


def ids(folder: Path) -> tuple[str, str, str]:
    return identity.latent_id(folder), identity.decoder_id(folder), identity.coder_id(folder)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensor(path: Path, prefix: str) -> None:
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.startswith(prefix))
    tensors[name] = tensors[name] + np.ones(1, tensors[name].dtype)
    save_file(tensors, path)


def test_ids_are_pinned(tmp_path: Path) -> None:
    """The hash is a part of the file format: these values must never change."""
    tensors = {
        "encoder.a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "decoder.b": np.ones(2, np.float16),
        "quant_conv.c": np.zeros((1, 1), np.int32),
    }
    save_file(tensors, tmp_path / WEIGHTS)
    save_file({"tables": np.arange(4, dtype=np.int32)}, tmp_path / "entropy.safetensors")
    config = {"latent_channels": 4, "decoder_layers": [1, 2], "scaling_factor": 3.0, "_x": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ids(tmp_path) == ("e809909ee5dc9963", "257d28d2720ef3e4", "dbf4f71bbe76c089")


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda d: edit_config(d, scaling_factor=9.0, shift_factor=1.0), (False, False)),
        (lambda d: edit_config(d, latents_mean=[1.0], latents_std=[2.0]), (False, False)),
        (lambda d: edit_config(d, _diffusers_version="0.1", force_upcast=True), (False, False)),
        (lambda d: edit_config(d, decoder_layers=[0, 0, 1, 2]), (False, True)),
        (lambda d: edit_config(d, latent_channels=5), (True, True)),
        (lambda d: edit_tensor(d / WEIGHTS, "decoder."), (False, True)),
        (lambda d: edit_tensor(d / WEIGHTS, "encoder."), (True, False)),
    ],
)
def test_ids_change_with_what_they_stand_for(
    copied: Path, change: Callable[[Path], None], changed: tuple[bool, bool]
) -> None:
    before = ids(copied)
    change(copied)
    after = ids(copied)
    assert (before[0] != after[0], before[1] != after[1]) == changed
    assert before[2] == after[2]


def test_finalize_writes_what_read_info_reads(copied: Path) -> None:
    written = checkpoint.finalize(
        copied,
        name="photographs",
        default_quality=60,
        quality_50_step=0.4,
        license_name="CC-BY-4.0",
        summary="A model.",
        accepts=["00112233445566ff"],
    )
    assert checkpoint.read_info(copied) == written
    assert written.accepts == (written.latent_id, "00112233445566ff")
    assert written.decodes("00112233445566ff", written.coder_id)
    assert not written.decodes("00112233445566ff", "00112233445566ff")
    assert not written.is_embedded
    assert written.size_bytes == sum(path.stat().st_size for path in copied.iterdir())
    written.verify()


@pytest.mark.parametrize("part", ["encoder.", "decoder.", "tables"])
def test_files_that_differ_from_their_ids_are_refused(copied: Path, part: str) -> None:
    if part == "tables":
        edit_tensor(copied / "entropy.safetensors", "")
    else:
        edit_tensor(copied / WEIGHTS, part)
    with pytest.raises(ModelError, match="export the model again"):
        checkpoint.read_info(copied).verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "found format_version 2"),
        ({"latent_id": "XYZ"}, "latent_id = 'XYZ'"),
        ({"accepts": "all"}, "accepts = 'all'"),
        ({"default_quality": 0}, "default_quality = 0"),
        ({"default_quality": True}, "default_quality = True"),
        ({"quality_50_step": float("nan")}, "quality_50_step = nan"),
        ({"name": ""}, "name = ''"),
        ({"name": "x" * 65}, "name = 'xxx"),
    ],
)
def test_wrong_codec_json_is_named(copied: Path, changes: dict[str, object], message: str) -> None:
    path = copied / "codec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(ModelError, match=message):
        checkpoint.read_info(copied)


def test_missing_entry_and_missing_file_are_named(copied: Path) -> None:
    path = copied / "codec.json"
    content = json.loads(path.read_text())
    del content["coder_id"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="found no 'coder_id'"):
        checkpoint.read_info(copied)
    path.write_text("[1, 2")
    with pytest.raises(ModelError, match="expected a small JSON object"):
        checkpoint.read_info(copied)
    path.unlink()
    with pytest.raises(ModelError, match=r"found no codec\.json"):
        checkpoint.read_info(copied)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:8] + b"[]" + data[10:],
        lambda data: b"\x80\x04." + data,
    ],
)
def test_damaged_weights_are_one_clear_error(
    copied: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = copied / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match="expected a complete safetensors file"):
        identity.stored_tensors(path)


def test_shards_are_found_and_pickles_are_not(tmp_path: Path) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="only safetensors are loaded"):
        identity.weight_files(tmp_path)
    shards = [tmp_path / f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    for shard in shards:
        shard.touch()
    assert identity.weight_files(tmp_path) == shards


def test_models_are_found_by_ids_in_listed_folders(
    model_dir: Path, other_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info, other = checkpoint.read_info(model_dir), checkpoint.read_info(other_model_dir)
    with pytest.raises(UnknownModelError, match=f"{info.latent_id}.*--model DIR.*LATENT_CODEC_MO"):
        catalog.find_model(info.latent_id, info.coder_id)
    folders = os.pathsep.join([str(model_dir), str(other_model_dir.parent)])
    monkeypatch.setenv("LATENT_CODEC_MODELS", folders)
    assert catalog.find_model(info.latent_id, info.coder_id) == info
    assert catalog.find_model(other.latent_id, other.coder_id) == other
    assert catalog.model_directory("other") == other_model_dir
    with pytest.raises(UnknownModelError):
        catalog.find_model(info.latent_id, other.coder_id)


def test_folder_without_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(tmp_path))
    with pytest.raises(ModelError, match="which LATENT_CODEC_MODELS names"):
        list(catalog.known_models())


def test_embedded_name_beats_a_folder_of_that_name(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_dir, tmp_path / "weights" / "tiny")
    monkeypatch.setattr(catalog, "EMBEDDED_FOLDER", tmp_path / "weights")
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert catalog.model_directory("tiny") == tmp_path / "weights" / "tiny"
    assert catalog.model_directory("./tiny") == Path("tiny")


def test_pipeline_folder_leads_to_its_autoencoder(model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    assert catalog.model_directory(tmp_path) == tmp_path / "vae"


def test_unknown_name_lists_what_is_expected() -> None:
    with pytest.raises(UnknownModelError, match=r"no model 'nothing-here'.*hub id"):
        catalog.model_directory("nothing-here")


def test_what_comes_from_a_hub_is_never_a_pickle(
    model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        asked.extend([repository, *allow_patterns])
        if repository == "some/absent":
            raise OSError("Repository Not Found\nand more")
        return str(model_dir)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert catalog.model_directory("some/model") == model_dir
    assert all(name.endswith((".json", ".safetensors")) for name in asked[1:])
    with pytest.raises(UnknownModelError, match=r"the hub did not give .*\(Repository Not Found\)"):
        catalog.model_directory("some/absent")
