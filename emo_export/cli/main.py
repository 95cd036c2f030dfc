"""The command line: thin commands; whatever is heavy is imported inside them.

Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 parity or verification failed,
2 wrong usage or input, 3 missing dependency, 70 a bug, 130 interrupted, 141 the reader of stdout
went away. Where 1, 2 and 3 apply to different targets, the smallest counts.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback

import click

from emo_export import __version__
from emo_export.base.shown import on_one_line, shown
from emo_export.base.uninterrupted import SIGNALS
from emo_export.cli.commands import Commands
from emo_export.cli.output import open_streams, tell
from emo_export.errors import EmoExportError

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Commands, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, "-V", "--version", prog_name="emo-export")
def cli() -> None:
    """Export EMO mixture-of-experts checkpoints to GGUF and ONNX, and prove parity."""


COMPLETING = "_EMO_EXPORT_COMPLETE"
"""Click's: set by a shell that asks for completions, or for the script that asks for them."""

_received: list[int] = []
_AGAIN = 0.01  # seconds


def _interrupt(number: int, frame: object) -> None:
    """End on any of the signals as on Ctrl-C, so that half-written files are removed.

    A second one must not disturb that; it takes a second at most.
    """
    _received.append(number)
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def _hear_again(found: sys.UnraisableHookArgs) -> None:
    """Repeat an interrupt that came where Python drops exceptions, as in a weak reference's call.

    Nobody could interrupt the command any more, as further signals are ignored.
    """
    if found.exc_type is not KeyboardInterrupt or not hasattr(signal, "setitimer"):
        sys.__unraisablehook__(found)
        return
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)


def main() -> None:
    """Run the command line and exit with its code."""
    open_streams()
    if COMPLETING in os.environ:
        from emo_export.cli.completing import begin

        begin()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup asks to be left alone
            signal.signal(number, _interrupt)
    sys.unraisablehook = _hear_again
    try:
        code = cli.main(prog_name="emo-export", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        code, text = _explained(error)
        tell(text)
    sys.exit(code if isinstance(code, int) else 0)


def _explained(error: BaseException) -> tuple[int, str]:
    """The exit code of what ended a command, and what to tell of it."""
    if isinstance(error, EmoExportError):
        lines = shown(str(error)).split("\n")
        return error.exit_code, "\n".join(f"error: {line}" for line in lines)
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, click.ClickException):
        usage = io.StringIO()
        error.show(usage)
        return error.exit_code, usage.getvalue().rstrip("\n")
    if isinstance(error, MemoryError):
        return 2, "error: there is not enough memory for this; free some, or raise a limit on it"
    if isinstance(error, UnicodeEncodeError):  # libraries take neither such paths nor such texts
        return 2, f"error: a path or a text is not UTF-8: {on_one_line(str(error.object)[:500])}"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return 2, f"error: {where}{error.strerror or error}"
    if _received:  # a library made another exception of the interrupt
        return 130, "interrupted"
    # Exit code 1 means failed parity; a bug must not look like it.
    told = "".join(traceback.format_exception(error))
    return 70, f"{told}error: this is a bug in emo-export, please report it: {error!r}"


if __name__ == "__main__":
    main()
