"""GSM8K's own answers, written as the bundled answer pairs are written."""

from __future__ import annotations

import re

ANNOTATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
FINAL_LINE = re.compile(r"^#### *(.*)$", re.MULTILINE)


def rewrite_answer(answer: str) -> str:
    """An answer of the GSM8K problems in the style of the GSM8K answer pairs.

    The pairs were written by models whose calculator was Python. Three things differ:
    the last line `#### 1,080` becomes `A: 1080`; the result of a calculation with a division or a
    decimal number becomes the float Python prints, `<<48/2=24>>` -> `<<48/2=24.0>>` and
    `<<2/10=.2>>` -> `<<2/10=0.2>>`. Text outside the annotations stays, and so does an annotation
    whose result is no plain number, or whose division is the integer one (`//`).
    """
    answer = ANNOTATION.sub(_as_python_prints, answer)
    return FINAL_LINE.sub(lambda match: "A: " + match[1].replace(",", ""), answer)


def _as_python_prints(annotation: re.Match[str]) -> str:
    expression, result = annotation[1], annotation[2]
    if not ("/" in expression or "." in expression) or "//" in expression:
        return annotation[0]
    try:
        return f"<<{expression}={float(result.replace(',', ''))}>>"
    except ValueError:
        return annotation[0]
