"""The commands: files in, files out, exit codes, one sentence for each error."""

import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import PIL.Image
import pytest
import typer

from codec import Codec, bitstream, catalog, console, images
from codec.cli import app
from codec.outputs import atomic_output

MakePixels = Callable[..., images.Pixels]
Run = Callable[..., int]


@pytest.fixture(autouse=True)
def _models(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_CODEC_MODELS", str(model_dir))
    monkeypatch.setattr(catalog, "DEFAULT_MODEL", "tiny")


@pytest.fixture
def run() -> Run:
    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            console.run(app, [str(word) for word in words])
        return int(ended.value.code or 0)

    return call


@pytest.fixture
def tree(tmp_path: Path, pixels: MakePixels) -> Path:
    """photos/one.png, photos/deep/two.jpg and photos/deep/three.webp."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    for seed, name in enumerate(("one.png", "deep/two.jpg", "deep/three.webp")):
        images.save(pixels(24, 32, seed), folder / name)
    return folder


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_file_becomes_a_file_and_comes_back(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packed, back = tmp_path / "one.lc", tmp_path / "back.png"
    assert run("encode", tree / "one.png", "-o", packed) == 0
    size = packed.stat().st_size
    assert capsys.readouterr().out == (
        f"{packed}  {size} bytes  {8 * size / 768:.3f} bpp  quality 50\n"
    )
    assert run("decode", packed, "-o", back) == 0
    expected = Codec.from_pretrained().decompress(packed)
    np.testing.assert_array_equal(images.load(back).pixels, np.asarray(expected))


def test_folder_tree_keeps_its_structure(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("encode", tree, "-o", tmp_path / "packed") == 0
    assert files_in(tmp_path / "packed") == {"one.lc", "deep/two.lc", "deep/three.lc"}
    assert "3 files" in capsys.readouterr().out
    assert run("decode", tmp_path / "packed", "-o", tmp_path / "back", "--format", "jpg") == 0
    assert files_in(tmp_path / "back") == {"one.jpg", "deep/two.jpg", "deep/three.jpg"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("*.png", {"one.lc"}), ("deep/*", {"two.lc", "three.lc"}), ("**/t*", {"deep/two.lc"})],
)
def test_patterns_work(
    run: Run, tree: Path, tmp_path: Path, pattern: str, expected: set[str]
) -> None:
    assert run("encode", tree / pattern, "-o", tmp_path / "packed") == 0
    assert files_in(tmp_path / "packed") >= expected


def test_existing_folder_and_trailing_slash_take_files(
    run: Run, tree: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    assert run("encode", tree / "one.png", "-o", tmp_path / "there") == 0
    assert run("encode", tree / "one.png", "-o", f"{tmp_path}/new/deeper/") == 0
    assert (tmp_path / "there/one.lc").read_bytes() == (tmp_path / "new/deeper/one.lc").read_bytes()


def test_failing_files_do_not_stop_the_others(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "broken.png").write_bytes(b"no image")
    packed = tmp_path / "packed"
    assert run("encode", tree, tmp_path / "absent.png", "-o", packed) == 1
    assert files_in(packed) == {"one.lc", "deep/two.lc", "deep/three.lc"}
    errors = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in errors] == ["error:", "error:"]
    assert "absent.png" in errors[0]
    assert "broken.png" in errors[1]
    damaged = bytearray((packed / "one.lc").read_bytes())
    damaged[-3] ^= 1
    (packed / "one.lc").write_bytes(damaged)
    assert run("decode", packed, "-o", tmp_path / "back") == 1
    assert files_in(tmp_path / "back") == {"deep/two.png", "deep/three.png"}


def test_existing_outputs_are_kept_without_force(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "one.lc"
    target.write_bytes(b"precious")
    assert run("encode", tree / "one.png", "-o", target) == 1
    assert target.read_bytes() == b"precious"
    assert "give --force" in capsys.readouterr().err
    assert run("encode", tree / "one.png", "-o", target, "--force") == 0
    assert target.read_bytes()[:4] == bitstream.MAGIC


def test_clashing_outputs_are_refused_before_any_work(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images.save(images.load(tree / "one.png").pixels, tree / "one.jpg")
    assert run("encode", tree, "-o", tmp_path / "packed") == 2
    assert "would both become" in capsys.readouterr().err
    assert not (tmp_path / "packed").exists()
    assert run("encode", tree / "one.png", "-o", tree / "one.png", "--force") == 2
    assert "is an input itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["encode", "{}/one.png"],
        ["encode", "{}/one.png", "-o", "x", "--quality", "0"],
        ["encode", "{}/one.png", "-o", "x", "--quality", "101"],
        ["encode", "{}/one.png", "-o", "x", "--step", "-1"],
        ["encode", "{}/one.png", "-o", "x", "--step", "1", "--quality", "5"],
        ["encode", "{}/one.png", "-o", "x", "--dtype", "int8"],
        ["encode", "{}/one.png", "{}/deep", "-o", "-"],
        ["encode", "{}/one.png", "{}/deep", "-o", "{}/one.png"],
        ["encode", "-", "-o", "{}"],
        ["decode", "{}", "-o", "x", "--format", "exe"],
        ["unknown"],
        [],
    ],
)
def test_wrong_use_exits_with_2(
    run: Run, tree: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*[word.format(tree) for word in words]) == 2
    captured = capsys.readouterr()
    assert "Usage:" in captured.out + captured.err


def test_stdin_and_stdout(
    run: Run,
    tree: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    give((tree / "one.png").read_bytes())
    assert run("encode", "-", "-o", "-", "--quality", "60") == 0
    data = capsysbinary.readouterr().out
    assert data == Codec.from_pretrained().compress(tree / "one.png", 60)
    give(data)
    assert run("decode", "-", "-o", "-") == 0
    picture = PIL.Image.open(io.BytesIO(capsysbinary.readouterr().out))
    assert (picture.format, picture.size) == ("PNG", (32, 24))
    give(data)
    assert run("info", "-", "--json") == 0
    assert json.loads(capsysbinary.readouterr().out)["size_bytes"] == len(data)


def test_alpha_warns_on_stderr_and_strict_refuses(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "alpha.png"
    PIL.Image.new("RGBA", (16, 16), (255, 0, 0, 100)).save(path)
    assert run("encode", path, "-o", tmp_path / "a.lc") == 0
    assert capsys.readouterr().err.startswith("warning: ")
    assert run("encode", path, "-o", tmp_path / "b.lc", "--strict") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "b.lc").exists()


def test_gray_comes_back_gray(run: Run, pixels: MakePixels, tmp_path: Path) -> None:
    PIL.Image.fromarray(pixels(20, 20)[..., 0]).save(tmp_path / "gray.png")
    assert run("encode", tmp_path / "gray.png", "-o", tmp_path / "gray.lc") == 0
    assert run("decode", tmp_path / "gray.lc", "-o", tmp_path / "back.png") == 0
    assert images.load(tmp_path / "back.png").is_gray


def test_info_says_what_is_in_a_file(
    run: Run,
    tree: Path,
    tmp_path: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    packed = tmp_path / "one.lc"
    assert run("encode", tree / "one.png", "-o", packed, "--step", "0.5") == 0
    capsys.readouterr()
    assert run("info", packed, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "tiny"
    assert report["model_directory"] == str(model_dir)
    assert report["latent_shape"] == [4, 3, 4]
    assert (report["width"], report["height"], report["color_mode"]) == (32, 24, "rgb")
    assert report["step"] == 0.5
    assert report["rate_bpp"] == 8 * packed.stat().st_size / 768
    monkeypatch.delenv("LATENT_CODEC_MODELS")
    assert run("info", packed) == 0
    assert "tiny (not at hand" in capsys.readouterr().out
    assert run("info", tree / "one.png") == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_models_lists_what_is_at_hand(
    run: Run, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("models", "--json") == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["tiny"]["directory"] == str(model_dir)
    assert listed["tiny"]["embedded"] is False
    assert run("models") == 0
    assert "Random weights for tests." in capsys.readouterr().out


def test_unknown_model_is_one_sentence(
    run: Run, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("encode", tree / "one.png", "-o", tmp_path / "x.lc", "--model", "nothing-here")
    assert run(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: found no model 'nothing-here'")
    assert error.count("\n") == 1
    with pytest.raises(catalog.UnknownModelError):
        console.run(app, [*map(str, words), "--debug"])


@pytest.mark.parametrize("command", ["encode", "decode"])
def test_ctrl_c_leaves_nothing_behind(
    run: Run, command: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **kwargs: object) -> NoReturn:
        raise KeyboardInterrupt

    source = tree / "one.png"
    if command == "decode":
        assert run("encode", source, "-o", tmp_path / "one.lc") == 0
        source = tmp_path / "one.lc"
        monkeypatch.setattr(PIL.Image.Image, "save", interrupt)
    else:
        monkeypatch.setattr("os.replace", interrupt)
    assert run(command, source, "-o", f"{tmp_path}/new/") == 130
    assert files_in(tmp_path / "new") == set()


def test_atomic_output_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file"

    def fail() -> None:
        with atomic_output(target) as stream:
            stream.write(b"half")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        fail()
    assert files_in(tmp_path) == set()
    with atomic_output(target) as stream:
        stream.write(b"whole")
        assert not target.exists()
    link = tmp_path / "link"
    link.symlink_to(target)
    with atomic_output(link) as stream:
        stream.write(b"other")
    assert link.is_symlink()
    assert target.read_bytes() == b"other"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (FileNotFoundError(2, "No such file or directory", "a.png"), "a.png: No such file"),
        (FileExistsError("a.lc exists already"), "a.lc exists already"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_errors_become_sentences(error: Exception, sentence: str) -> None:
    assert console.error_sentence(error).startswith(sentence)


def test_our_own_mistakes_keep_their_traceback() -> None:
    broken = typer.Typer()

    @broken.command()
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        console.run(broken, [])


@pytest.mark.parametrize("command", ["encode", "decode", "info", "models"])
def test_every_help_has_an_example(
    run: Run, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--help") == 0
    assert f"  latent-codec {command}" in capsys.readouterr().out


def test_help_and_info_wait_for_no_heavy_import(tmp_path: Path) -> None:
    script = """
import sys
from codec import console
from codec.cli import app
try:
    console.run(app, sys.argv[1:])
finally:
    print(sorted({"torch", "numpy", "PIL"} & set(sys.modules)))
"""
    for words in (["--help"], ["encode", "--help"], ["models"], ["info", str(tmp_path / "no.lc")]):
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True
        )
        assert done.returncode == (words[0] == "info")
        assert done.stdout.splitlines()[-1] == "[]"
        assert done.stderr.count("\n") == done.returncode
        assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.5
