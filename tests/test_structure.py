"""The house's one import rule: codec <- eval <- train, and nothing imports the tests."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "codec": {"codec"},
    "eval": {"codec", "eval"},
    "train": {"codec", "eval", "train"},
}
ROOMS = {"codec", "eval", "train", "tests"}


def imported_rooms(source: str) -> set[str]:
    """The rooms that a module's import statements name, wherever they stand in it."""
    rooms = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            rooms.add((node.module or "").split(".")[0])
    return rooms & ROOMS


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_follow_the_rule(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    broken = {
        str(path.relative_to(ROOT)): sorted(wrong)
        for path in files
        if (wrong := imported_rooms(path.read_text(encoding="utf-8")) - ALLOWED[room])
    }
    assert broken == {}


def test_the_rule_is_seen_inside_functions() -> None:
    assert imported_rooms("def f():\n    from train.config import X\n    import eval.cli\n") == {
        "train",
        "eval",
    }
