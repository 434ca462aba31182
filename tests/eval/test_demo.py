"""The demonstration: real files beside a page that needs nothing else."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from codec import images
from codec.errors import LatentCodecError
from codec.pipeline import Codec
from eval.baselines import jpeg_at_size
from eval.demo import (
    SAMPLES,
    Demonstration,
    chosen_samples,
    demo_table,
    packaged_samples,
    run_demo,
)
from eval.page import SHOWN_SIDE, readable_size

Pixels = NDArray[np.uint8]


class PageReader(HTMLParser):
    """Collects what a page loads and links to, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action") and v]


@pytest.fixture(scope="module")
def codec(model_dir: Path) -> Codec:
    return Codec.from_pretrained(model_dir, dtype="fp32")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Pixels]) -> list[Path]:
    """Two images of one name in two folders, one with markup in its name, and a broken one."""
    folder = tmp_path_factory.mktemp("mine")
    paths = [folder / "a" / "cat.png", folder / "b" / "cat.png", folder / "<b>&.png"]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        images.save(pixels(165, 170, seed), path)
    images.save(pixels(16, SHOWN_SIDE + 400), folder / "wide.png", is_gray=True)
    (folder / "broken.png").write_bytes(b"")
    return [*paths, folder / "wide.png", folder / "broken.png"]


@pytest.fixture(scope="module")
def shown(
    codec: Codec, sources: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Demonstration:
    return run_demo(codec, chosen_samples(sources), tmp_path_factory.mktemp("out"))


def test_files_decode_to_the_pictures_beside_them(shown: Demonstration, codec: Codec) -> None:
    folder = shown.page.parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            f"{stem}{suffix}"
            for stem in ("cat", "cat-2", "<b>&", "wide")
            for suffix in (".lc", ".png")
        ]
        + ["index.html"]
    )
    for stem in ("cat-2", "wide"):
        decoded = codec.decompress(folder / f"{stem}.lc")
        with PIL.Image.open(folder / f"{stem}.png") as saved:
            assert saved.mode == decoded.mode
            assert np.array_equal(np.asarray(saved), np.asarray(decoded))


def test_a_broken_image_does_not_stop_the_others(shown: Demonstration) -> None:
    assert [failure.name for failure in shown.errors] == ["broken.png"]
    assert demo_table(shown).row_count == len(shown.results) == 4


def test_the_page_is_complete_in_itself(shown: Demonstration) -> None:
    page = shown.page.read_text()
    assert "://" not in page
    reader = PageReader()
    reader.feed(page)
    outside = [link for link in reader.links if not link.startswith("data:")]
    assert len(outside) == 8  # a .lc and a .png of each image, for those who want the files
    assert all(re.fullmatch(r"(cat|cat-2|%3Cb%3E%26|wide)\.(lc|png)", link) for link in outside)
    assert '<h2 id="title-3">&lt;b&gt;&amp;.png</h2>' in page


def test_the_page_can_be_used_without_eyes_and_mouse(shown: Demonstration) -> None:
    reader = PageReader()
    reader.feed(shown.page.read_text())
    pictures = [attributes for tag, attributes in reader.tags if tag == "img"]
    sliders = [attributes for tag, attributes in reader.tags if attributes.get("type") == "range"]
    assert len(pictures) == 3 * 4
    assert all(picture["alt"] and picture["width"] and picture["height"] for picture in pictures)
    assert all(slider["aria-label"] for slider in sliders)
    identifiers = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_nothing_to_show_is_an_error(codec: Codec, sources: list[Path], tmp_path: Path) -> None:
    with pytest.raises(LatentCodecError, match=r"found nothing to show: .*broken\.png"):
        run_demo(codec, chosen_samples(sources[-1:]), tmp_path)


def test_samples_come_with_scikit_image() -> None:
    found = packaged_samples()
    assert [sample.path.name for sample in found] == list(SAMPLES)
    assert images.load(found[-1].path).is_gray


def test_the_jpeg_is_the_best_that_fits(pixels: Callable[..., Pixels]) -> None:
    image = images.Image(pixels(64, 64))
    limit = len(jpeg_at_size(image, 10**9).data) // 2
    jpeg = jpeg_at_size(image, limit)
    assert len(jpeg.data) <= limit
    assert len(jpeg_at_size(image, limit * 2).data) > len(jpeg.data)
    assert jpeg_at_size(image, 1).quality == 1  # the smallest there is


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(999, "999 B"), (7423, "7.4 kB"), (2_400_000, "2.40 MB")]
)
def test_sizes_for_people(size_bytes: int, text: str) -> None:
    assert readable_size(size_bytes) == text
