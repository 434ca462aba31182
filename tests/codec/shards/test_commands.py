"""The commands for datasets: verify, stats, decode-shards, export-npy, import."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner, Result

from codec.cli import app
from codec.pipeline import Codec
from codec.shards.errors import ShardError
from codec.shards.forms import Container, Content, ShardForm
from codec.shards.index import iter_errors
from codec.shards.layout import index_name
from codec.shards.loader import LatentDataset
from codec.shards.manifest import Manifest
from codec.shards.reader import iter_records
from codec.shards.verify import verify
from tests.codec.shards.datasets import CHANNELS, latents_of, write_lc, write_raw


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def lc_dir(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> Path:
    directory = tmp_path_factory.mktemp("lc")
    write_lc(directory, model_dir, [6, 5], grids=[(6, 5), (8, 8)])
    return directory


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def test_a_whole_dataset_passes(lc_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    found = verify(lc_dir, model=str(model_dir), everything=True)
    assert (found.problems, found.num_records, found.num_decoded) == ((), 11, 11)
    assert verify(lc_dir, model=str(model_dir), sample=4).num_decoded == 4
    done = run("verify", lc_dir, "--model", model_dir, "--json")
    assert (done.exit_code, json.loads(done.stdout)["num_shards"]) == (0, 2)
    for container in Container:
        directory = tmp_path / container
        write_raw(directory, [3, 2], ShardForm(container, Content.FLOAT16, True))
        assert verify(directory, everything=True).problems == ()


def test_verify_names_what_is_wrong(
    lc_dir: Path, model_dir: Path, other_model_dir: Path, tmp_path: Path
) -> None:
    def problems(directory: Path, model: Path = model_dir) -> str:
        return "\n".join(verify(directory, model=str(model), everything=True).problems)

    assert "found latents" in problems(lc_dir, other_model_dir)
    (unknown, statistics, *_) = verify(lc_dir, everything=True).problems
    assert "not at hand" in unknown
    assert "statistics" in statistics
    directory = copied(lc_dir, tmp_path)
    _, record = list(iter_records(directory, 1))[2]
    shard = directory / "shard-000001.tar"
    data = bytearray(shard.read_bytes())
    data[record.location.offset + 30] ^= 1
    shard.write_bytes(data)
    found = problems(directory)
    assert "shard-000001.tar: found other bytes than its checksum" in found
    assert repr(record.info.key) in found
    assert "statistics" in found
    shard.write_bytes(data[:-600])
    assert "bytes, expected" in problems(directory)
    (directory / index_name(1)).unlink()
    assert "No such file" in problems(directory)
    (directory / "errors.jsonl").write_text("{}\n")
    assert "found 1 errors, expected 0" in problems(directory)
    done = run("verify", directory, "--model", model_dir)
    assert done.exit_code == 1
    assert "errors.jsonl" in done.stderr


def test_verify_finds_keys_that_are_doubled(tmp_path: Path) -> None:
    write_raw(tmp_path / "a", [4, 4])
    write_raw(tmp_path / "b", [4])
    manifest = Manifest.read(tmp_path / "a").to_json()
    for name in ("shard-000000.tar", index_name(0)):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name.replace("000000", "000001"))
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    found = "\n".join(verify(tmp_path / "a").problems)
    assert "found the key 'folder/0000.jpg' twice" in found


def test_stats(lc_dir: Path, model_dir: Path) -> None:
    done = run("stats", lc_dir)
    assert done.exit_code == 0
    assert "11 records" in done.stdout
    assert "scaling_factor" in done.stdout
    content = json.loads(run("stats", lc_dir, "--json").stdout)
    dataset = LatentDataset(lc_dir, raw=True, model=str(model_dir))
    parts = [sample["latents"].flatten(1).numpy() for sample in dataset]
    values = np.concatenate(parts, axis=1).astype(np.float64)
    np.testing.assert_allclose(content["latents"]["mean"], values.mean(1), rtol=1e-12)
    np.testing.assert_allclose(content["latents"]["std"], values.std(1), rtol=1e-12)


def test_decode_shards(lc_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    done = run("decode-shards", lc_dir, "-o", tmp_path / "look", "--limit", 4, "-m", model_dir)
    assert done.exit_code == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "look").iterdir())
    assert len(names) == 5
    assert names[:2] == ["00000000-folder_0000.jpg.png", "00000002-folder_0002.jpg.png"]
    codec = Codec.from_pretrained(model_dir)
    bodies = [r.read_body(record) for r, record in iter_records(lc_dir, 0)]
    with PIL.Image.open(tmp_path / "look" / names[1]) as image:
        assert np.array_equal(np.asarray(image), np.asarray(codec.decompress(bodies[2])))
    with PIL.Image.open(tmp_path / "look" / "contact-sheet.png") as sheet:
        assert sheet.size[0] > 300
    wrong = run("decode-shards", lc_dir, "-o", tmp_path / "none")
    assert isinstance(wrong.exception, ValueError)
    assert "not at hand" in str(wrong.exception)


def test_export_npy(tmp_path: Path) -> None:
    write_raw(tmp_path / "set", [3])
    done = run("export-npy", tmp_path / "set", "-o", tmp_path / "npy", "--mean-std")
    assert (done.exit_code, done.stdout.split()[0]) == (0, "3")
    found = np.load(tmp_path / "npy" / "00000" / "img-mean-std-00000000.npy")
    np.testing.assert_array_equal(found, np.concatenate([latents_of(0), np.zeros((4, 6, 5))]))


def write_caches(folder: Path) -> dict[str, np.ndarray]:
    """Scaled latents by 0.5 in all the kinds of files; returns the raw ones by key."""
    folder.mkdir()
    raw = [latents_of(n, (4, 6)) for n in range(6)]
    scaled = [one * 0.5 for one in raw]
    np.save(folder / "a.npy", scaled[0])
    np.save(folder / "b.npy", np.stack(scaled[1:3]))
    np.savez(folder / "c.npz", latents=scaled[3], original_size=np.array([48, 32]))
    np.savez_compressed(folder / "d.npz", latents_4x6=np.asfortranarray(scaled[4]))
    tensor = torch.from_numpy(scaled[5]).bfloat16()
    safetensors.torch.save_file({"latents": tensor}, folder / "e.safetensors")
    (folder / "dataset.json").write_text(json.dumps({"labels": [["a.npy", 7]]}))
    keys = ["a.npy", "b.npy#000000", "b.npy#000001", "c.npz", "d.npz", "e.safetensors"]
    return dict(zip(keys, [*raw[:5], tensor.float().numpy() / 0.5], strict=True))


@pytest.mark.parametrize("container", list(Container))
def test_import_of_scaled_caches(tmp_path: Path, container: Container) -> None:
    expected = write_caches(tmp_path / "cache")
    (tmp_path / "cache" / "f.npy").write_bytes(b"no array")
    words = ["import", tmp_path / "cache", "-o", tmp_path / "set", "--scaled-by", 0.5]
    done = run(*words, "--content", "float32", "--container", container, "--shard-files", 2)
    assert done.exit_code == 1  # for the broken file
    assert "errors.jsonl" in done.stderr
    found = {sample["key"]: sample for sample in LatentDataset(tmp_path / "set", raw=True)}
    assert found.keys() == expected.keys()
    for key, latents in expected.items():
        np.testing.assert_allclose(found[key]["latents"].numpy(), latents, rtol=1e-6)
    assert found["a.npy"]["label"] == "7"
    (error,) = iter_errors(tmp_path / "set" / index_name(2))
    assert error.key == "f.npy"
    assert verify(tmp_path / "set", everything=True).problems == ()


def test_import_to_files_and_going_on(tmp_path: Path, model_dir: Path) -> None:
    expected = write_caches(tmp_path / "cache")
    words = ["import", tmp_path / "cache", "-o", tmp_path / "set", "--scaled-by", 0.5]
    words += ["--content", "lc", "--model", model_dir, "--shard-files", 3]
    assert run(*words).exit_code == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()}
    (tmp_path / "set" / index_name(1)).unlink()
    (tmp_path / "set" / "manifest.json").unlink()
    assert run(*words).exit_code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "set").iterdir()} == whole
    assert verify(tmp_path / "set", model=str(model_dir), everything=True).problems == ()
    step = (Manifest.read(tmp_path / "set").step or 0) / 65536
    dataset = LatentDataset(tmp_path / "set", raw=True, model=str(model_dir))
    for sample in dataset:
        assert np.abs(sample["latents"].numpy() - expected[sample["key"]]).max() < 1.5 * step
    other = run(*[word if word != 0.5 else 0.25 for word in words])
    assert isinstance(other.exception, ShardError)
    assert "found preprocessing" in str(other.exception)


def test_import_of_posteriors(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    latents, deviation = latents_of(0), np.abs(latents_of(1)) + np.float32(0.1)
    np.save(tmp_path / "cache" / "a.npy", np.concatenate([latents, deviation]))
    words = ["import", tmp_path / "cache", "-o", tmp_path / "set", "--content", "float32"]
    assert run(*words, "--posterior", "mean-std").exit_code == 0
    ((reader, record),) = iter_records(tmp_path / "set", 0)
    del reader
    assert record.location.size == 2 * latents.nbytes
    assert run("export-npy", tmp_path / "set", "-o", tmp_path / "npy").exit_code == 0
    found = np.load(tmp_path / "npy" / "00000" / "img-mean-std-00000000.npy")
    np.testing.assert_allclose(found[CHANNELS:], deviation, rtol=1e-5)


def test_forged_caches_are_errors(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    np.save(folder / "good.npy", latents_of(0))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (4, 999999, 999999), }"
    huge = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (folder / "huge.npy").write_bytes(huge + bytes(100))
    with zipfile.ZipFile(folder / "huge.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("latents.npy", huge + bytes(1000))
    np.save(folder / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "integers.npy", np.ones((4, 2, 2), np.int32))
    np.save(folder / "infinite.npy", np.full((4, 2, 2), np.inf, np.float32))
    np.save(folder / "channels.npy", np.ones((3, 2, 2), np.float32))
    (folder / "cut.safetensors").write_bytes(b"\xff" * 20)
    done = run("import", folder, "-o", tmp_path / "set", "--posterior", "none")
    assert done.exit_code == 1, done.exception
    reasons = {error.key: error.reason for error in iter_errors(tmp_path / "set" / index_name(0))}
    assert len(reasons) == 7
    assert "shape (4, 999999, 999999)" in reasons["huge.npy"]
    assert "huge.npz" in reasons
    assert "object.npy" in reasons


def test_wrong_use(tmp_path: Path) -> None:
    assert run("verify", tmp_path / "nothing").exit_code == 2
    assert run("import", tmp_path, "-o", tmp_path / "x", "--content", "lc").exit_code == 2
    assert run("import", tmp_path, "-o", tmp_path / "x", "--quality", 5).exit_code == 2
    assert run("import", tmp_path, "-o", tmp_path / "x", "--scaled-by", 0).exit_code == 2
    assert "no manifest" in str(run("stats", tmp_path).exception)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from codec.cli import app; import codec.shards.commands; "
        "print([m for m in ('torch', 'numpy', 'pyarrow', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
