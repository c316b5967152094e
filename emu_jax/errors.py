"""The one exception for what a user can mend: one sentence that names the thing and the mend."""


class UserError(Exception):
    """Bad input. The command line prints the message alone and exits with status 2."""
