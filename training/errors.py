"""What the user can mend."""


class UserError(ValueError):
    """Something that cannot be used; its one line says what is wrong, where, and what to write instead."""
