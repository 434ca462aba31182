"""A short run of the fuzzer; `make fuzz` is the long one."""

from pathlib import Path

import pytest

from tests import fuzz


def test_no_damaged_or_forged_file_misbehaves(tmp_path: Path) -> None:
    outcomes = fuzz.run(400, 0, tmp_path)
    expected = ("CorruptFileError", "TruncatedFileError", "InvalidHeaderError")
    assert all(outcomes[name] for name in (*expected, "SymbolMismatchError", "the same picture"))


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError])
def test_an_untyped_error_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    samples = fuzz.make_samples(tmp_path)[:1]
    monkeypatch.setattr(fuzz, "make_samples", lambda folder: samples)
    original, calls = fuzz.decoded, iter(range(10))

    def fail_later(codec: object, data: bytes) -> bytes:
        if next(calls) > 0:
            raise error
        return original(samples[0].codec, data)

    monkeypatch.setattr(fuzz, "decoded", fail_later)
    with pytest.raises(fuzz.FuzzError, match=error.__name__):
        fuzz.run(50, 0, tmp_path)
    assert (tmp_path / "failed.lc").is_file()


def test_another_picture_is_found(tmp_path: Path) -> None:
    first, second, *_ = fuzz.make_samples(tmp_path)
    with pytest.raises(fuzz.FuzzError, match="another picture"):
        fuzz.check(second.data, first, is_forged=False, folder=tmp_path)
