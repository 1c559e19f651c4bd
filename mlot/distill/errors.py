"""The error that the command turns into a message."""


class DistillError(ValueError):
    """What was asked for cannot be done; the message says what came and what was expected."""
