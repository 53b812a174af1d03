"""The exceptions that speak to users."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line that says what is wrong, which file or key it concerns and what to do.
    Commands print it without a traceback and end with a non-zero exit status.
    """


class Diverged(UserError):
    """A loss, or what came of it, is not a finite number any more."""
