"""The command line of commands that compose no config: words, and options that may stand anywhere among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from dil_cli.errors import DilError


def split_options(
    command: str, argv: Sequence[str], values: Mapping[str, str], switches: Collection[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Words and options; `--flag value` and `--flag=value` are the same, a switch has the value "".

    Args:
        command: as it is typed, for example "dil cache verify".
        argv: what follows it.
        values: options that take a value, with an example.
        switches: options that take none.

    Raises:
        DilError: for an option that is not known, lacks its value or takes none.
    """
    words: list[str] = []
    options: dict[str, str] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if not word.startswith("-"):
            words.append(word)
        elif flag in values:
            options[flag] = value if equals else rest.pop(0) if rest and not rest[0].startswith("--") else ""
            if not options[flag]:
                raise DilError(f"{flag} needs a value", f"{command} {flag}", f"{command} {flag} {values[flag]}")
        elif flag not in switches:
            raise DilError(f"no option {word}", f"{command} {word}", f"{' '.join(command.split()[:2])} --help")
        elif equals:
            raise DilError(f"{flag} takes no value", f"{command} {word}", f"{command} {flag}")
        else:
            options[flag] = ""
    return words, options
