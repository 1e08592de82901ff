"""Made blocks are rewritten, the prose round them is not, and nothing is lost without a word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from results.blocks import BLOCK, fill
from results.page import IMAGES
from results.pages import PAGES, data_pages

PAGE = """# A page

<!-- made: table -->
old
<!-- made: end -->

Prose with \\1 and a <!-- comment -->.

<!-- made: cost -->
<!-- made: end -->
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_blocks_are_replaced_and_prose_is_kept(page):
    fill(page, {"table": "| a \\1 |\n\n", "cost": "3 runs"})
    expected = PAGE.replace("old\n", "| a \\1 |\n").replace("cost -->\n", "cost -->\n3 runs\n")
    assert page.read_text() == expected
    fill(page, {"table": "| a \\1 |", "cost": "3 runs"})
    assert page.read_text() == expected


@pytest.mark.parametrize("blocks", [{"table": "x"}, {"table": "x", "cost": "y", "more": "z"}, {}])
def test_a_missing_or_unknown_key_is_an_error_and_the_page_stays(page, blocks):
    with pytest.raises(ValueError, match="its made blocks are cost, table"):
        fill(page, blocks)
    assert page.read_text() == PAGE


@pytest.mark.parametrize(
    ("old", "new"),
    [("<!-- made: end -->\n\nProse", "Prose"), ("<!-- made: cost -->\n", ""), ("old\n", "<!-- made: inner -->\n")],
)
def test_a_block_without_an_end_is_an_error(page, old, new):
    page.write_text(PAGE.replace(old, new, 1))
    with pytest.raises(ValueError, match="not closed"):
        fill(page, {"table": "x", "cost": "y"})


def test_two_blocks_of_one_key_are_an_error(page):
    page.write_text(PAGE.replace("made: cost", "made: table"))
    with pytest.raises(ValueError, match="more than one block: table"):
        fill(page, {"table": "x"})


@pytest.mark.parametrize("page", [*PAGES, *data_pages(Path("data"))], ids=lambda page: page.name)
def test_every_page_has_its_figure_and_shows_none_that_is_not_there(page):
    text = page.path.read_text()
    (figure,) = (match[2].strip() for match in BLOCK.finditer(text) if match[1] == "figure")
    assert figure in {page.figure, "Not run yet."}
    for name in re.findall(r"\]\(images/(.+?)\)", text):
        assert (IMAGES / name).is_file()
