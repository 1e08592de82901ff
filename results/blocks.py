"""Pages of Markdown whose numbers are made: `<!-- made: KEY -->`, a block that is rewritten, `<!-- made: end -->`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from dil_cli.files import replacing

END = "<!-- made: end -->"
BLOCK = re.compile(r"^<!-- made: (?!end -->)(.+?) -->$(.*?)^<!-- made: end -->$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- made: .+? -->")


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Put each text in the block of its key; the prose round the blocks stays as it is.

    Raises:
        ValueError: when a block has no text, a text no block, two blocks one key, or a block no end.
    """
    old = page.read_text(encoding="utf-8")
    keys = [match[1] for match in BLOCK.finditer(old)]
    if 2 * len(keys) != len(MARK.findall(old)) or any(MARK.search(match[2]) for match in BLOCK.finditer(old)):
        raise ValueError(f"{page}: a made block is not closed: each is a line <!-- made: KEY --> and a line {END}")
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ValueError(f"{page}: more than one block: {', '.join(twice)}")
    if set(keys) != set(blocks):
        here, given = (", ".join(sorted(names)) or "none" for names in (keys, blocks))
        raise ValueError(f"{page}: its made blocks are {here}; there are texts for {given}")
    new = BLOCK.sub(lambda match: f"<!-- made: {match[1]} -->\n{blocks[match[1]].strip()}\n{END}", old)
    if new != old:
        with replacing(page) as temporary:
            temporary.write_text(new, encoding="utf-8")
