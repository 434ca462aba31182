"""The commands of docs/priors.md are taken as they stand there."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from codec import cli, console
from codec.prior import generation
from train.config import load_config
from train.prior.sections import PriorConfig

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "priors.md").read_text(encoding="utf-8")
LINES = [
    shlex.split(line, comments=True)
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    if language != "python"
    for line in block.splitlines()
]


@pytest.mark.parametrize("words", [w for w in LINES if w[:2] == ["latent-codec", "sample"]])
def test_sample_takes_them(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        generation, "generate", lambda *given, **more: asked.append((given, more)) or 0
    )
    with pytest.raises(SystemExit) as ended:
        console.run(cli.app, words[1:])
    assert ended.value.code == 0
    ((_, wish, output), _) = asked[0]
    assert wish.count == int(words[words.index("-n") + 1])
    assert str(output) == words[words.index("-o") + 1].rstrip("/")


@pytest.mark.parametrize(
    "words", [w for w in LINES if w[0] == "latent-codec-train" and w[1] != "export"]
)
def test_trainings_take_them(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_CODEC_SHARED", "/shared")
    config = load_config(ROOT / words[1], words[2:])
    assert isinstance(config, PriorConfig)


def test_settings_of_the_tables_are_there() -> None:
    named = re.findall(r"^\| `(\w+)\.(\w+)` \|", TEXT, re.MULTILINE)
    assert len(named) > 5
    for section, key in named:
        field = PriorConfig.model_fields[section]
        assert key in field.annotation.model_fields  # type: ignore[union-attr]
