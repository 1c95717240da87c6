"""What a user can mend, told apart from what only a bug can cause."""


class UserError(ValueError):
    """Something that the user can put right. The message says what, where, and what would be right."""


class OldFormatError(UserError):
    """A checkpoint that another version of this project wrote."""
