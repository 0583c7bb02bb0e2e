"""What the user can mend."""

from collections.abc import Sequence


class UserError(ValueError):
    """Something that cannot be used; its one line says what is wrong, where, and what to write instead.

    `details` are lines to read below it, such as a table.
    """

    def __init__(self, message: str = "", details: Sequence[str] = ()):
        super().__init__(message)
        self.details = list(details)
