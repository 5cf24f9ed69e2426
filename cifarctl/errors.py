"""What can go wrong for a user. Each exception's text is one line (what, where); `hint` says what to do.

Code below `cifarctl.cli` raises these and nothing prints them but `cifarctl.cli`, which maps each to one
`error:` line, one `hint:` line and `exit_code`.
"""

from cifarctl.names import shortened


class CifarctlError(Exception):
    """A failure that the user can act on. Message and hint write parameters as `name`: the command line makes an option
    of it. Both are shortened, since they may repeat a value from a hostile file.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(shortened(message))
        self.hint = hint and shortened(hint)


class UsageError(CifarctlError):
    """The options do not make sense, alone or together."""

    exit_code = 2


class DataError(CifarctlError):
    """A data set is missing, damaged or not what it was said to be."""


class ArrayError(DataError, ValueError):
    """An array that a Python program gave is not what it should be."""


class ChangedDataError(DataError):
    """The data is not what the run or the model was trained on."""


class DownloadError(DataError):
    """No source gave the archive."""


class FileInUseError(CifarctlError):
    """A file cannot be replaced, since another program uses it. So on Windows alone."""


class ImageError(CifarctlError):
    """One image cannot be decoded. Others are unaffected."""


class WeightsError(CifarctlError):
    """A weights file is missing, damaged, or holds another kind of model than is needed."""


class RunDirError(CifarctlError):
    """A run's folder cannot be written, already holds a run, or does not hold the one to resume."""


class TrainingError(CifarctlError):
    """Training cannot go on."""


class ProcessLostError(CifarctlError):
    """Another process of those that torchrun started has ended, or does not answer."""


class Interrupted(CifarctlError):  # noqa: N818 (it is no error)
    """A signal ended a training run, after its checkpoint was saved. The exit code is 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number
