"""Errors that a user can cause, and the exit codes that scripts may rely on."""

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER_ERROR = 2
EXIT_SITE_LOST = 75  # another site or a link failed: try again (EX_TEMPFAIL of sysexits.h)
EXIT_NODE_LOST = 84  # a node failed and no spare was left: start the same command on others
EXIT_REQUEUE = 85  # stopped in good order, with a checkpoint, before its end: start the same command again
EXIT_HANG = 86  # a rank made no progress within its deadline: the watchdog ended it
EXIT_REWIND = 87  # the guard goes back behind a loss spike: start the same command again
EXIT_GAVE_UP = 88  # restarted again and again without a new step
EXIT_STORAGE = 89  # a checkpoint could not be written: the disk is full or broken
EXIT_UNFIT = 90  # a preflight found something that would stop or slow the run
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention


class UserError(Exception):
    """Something that the user can put right: one line says what is wrong, where, and what to do.

    Args:
        what: what is wrong, with the arithmetic if there is any.
        where: the configuration key, file or line that it comes from.
        fix: what to do about it.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        line = f"{where}: {what}" if where else what
        line = f"{line}; {fix}" if fix else line
        super().__init__(" ".join(line.split()))
