"""What programs say, as a terminal may show it. Only Python's own library, of any version that a node may have."""

import unicodedata

MOST = 1000
"""Characters of a line that are kept: the whole of an exception that says much, not a progress bar's whole night."""
OTHER_THAN_TEXT = ("Cc", "Cf", "Cs", "Zl", "Zp")  # of Unicode: controls, directions of writing, half characters


def plain(text):
    """`text` in which what a terminal would obey, such as a colour or a new title, is shown. Lines and tabs stay."""
    return "".join(
        character.encode("unicode_escape").decode()
        if character not in "\n\t" and unicodedata.category(character) in OTHER_THAN_TEXT
        else character
        for character in text
    )


def one_line(text):
    """The same of a line in a journal. A progress bar writes over itself all the time: how it was last stays."""
    shown = plain("\n".join(line.rpartition("\r")[2] for line in text.rstrip().split("\n")))
    return shown if len(shown) <= MOST else f"{shown[:MOST]}... ({len(shown)} characters)"


def everywhere(value):
    """A JSON value in which all texts are plain."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [everywhere(each) for each in value]
    if isinstance(value, dict):
        return {plain(name): everywhere(each) for name, each in value.items()}
    return value
