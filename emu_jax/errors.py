"""What is not a defect: bad input, and another process that is gone. One sentence each."""


class UserError(Exception):
    """Bad input. The command line prints the message alone and exits with status 2."""


class LostProcess(Exception):
    """Another process of the run is gone. Nothing need be mended: the run is to be started again.

    The command line prints the message alone and exits with status 75.
    """
