"""The errors a user can meet, each with the exit code that the command line gives it."""

from __future__ import annotations

LONGEST_LINE = 4000


class EmoExportError(Exception):
    """Wrong usage or wrong input: says what was found, where, and what to do (exit code 2)."""

    exit_code = 2

    def __init__(self, text: str) -> None:
        """A line of more than LONGEST_LINE characters, which quotes a file, is cut."""
        super().__init__("\n".join(map(_cut, text.split("\n"))))


class BadValueError(EmoExportError):
    """A value that can't be read, packed or written: at `row`, `column` of the rows at hand.

    What catches it knows where these rows come from, and says the place in the whole tensor.
    """

    def __init__(self, row: int, column: int, reason: str) -> None:
        super().__init__(f"row {row}, column {column}: {reason}")
        self.row, self.column, self.reason = row, column, reason

    def below(self, rows: int) -> BadValueError:
        """The same place, counted from `rows` rows further up."""
        return BadValueError(self.row + rows, self.column, self.reason)


class MissingDependencyError(EmoExportError):
    """Something that this command needs is not installed; names the install command (exit 3)."""

    exit_code = 3


class NotEnoughTextError(EmoExportError):
    """Nothing failed, but too few tokens were scored to tell whether a limit holds (exit 4).

    Not 0: nothing was shown. Not 1: a job can let it pass without letting a failure pass.
    """

    exit_code = 4


class ParityError(EmoExportError):
    """An exported model is outside its tolerance, or a file differs from its digest (exit 1)."""

    exit_code = 1


def _cut(line: str) -> str:
    more = len(line) - LONGEST_LINE
    return line if more <= 0 else f"{line[:LONGEST_LINE]}… ({more} more characters)"
