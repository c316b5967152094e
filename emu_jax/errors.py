"""Exceptions that are not defects of the program: bad input, and a lost process of the run.

Their messages are one sentence.
"""


class UserError(Exception):
    """Bad input that the user can fix. The message says what is wrong and what to do.

    The command line prints only the message and exits with status 2.
    """


class LostProcess(Exception):
    """Another process of the run has died. Nothing must be fixed; the run can be started again.

    The command line prints only the message and exits with status 75.
    """
