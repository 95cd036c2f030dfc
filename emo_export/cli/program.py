"""The program: a command whose engine may crash runs in a child, and a crash is a refusal.

The child is a fork from before anything heavy is imported, so it costs milliseconds and has the
terminal, the pipes and the arguments of its parent. Linux only: elsewhere a fork may not use all of
the system's libraries, and a crash is what the system makes of it.
"""

from __future__ import annotations

import os
import signal
import sys

from emo_export.base.tied import tied
from emo_export.base.uninterrupted import SIGNALS
from emo_export.cli.main import main
from emo_export.cli.output import open_streams, tell

OPENING = ("run", "chat")
"""Commands that open an engine in their own process."""


def program() -> None:
    """Run the command line and exit with its code; 2 where a signal ended the engine."""
    if sys.platform == "linux" and sys.argv[1:2] and sys.argv[1] in OPENING:
        open_streams()
        tie = tied()
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGCHLD))
        if child := os.fork():
            sys.exit(_code_of(child))
        tie()
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # no debugger where ggml gives up
    main()


def _code_of(child: int) -> int:
    """The exit code of a child, to which signals to this process alone are sent on."""
    while True:
        heard = signal.sigwaitinfo((*SIGNALS, signal.SIGCHLD))
        if heard.si_signo != signal.SIGCHLD:
            # A terminal (si_code > 0) tells the child itself; a second Ctrl-C would mean more.
            if heard.si_code <= 0:
                os.kill(child, heard.si_signo)
            continue
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            break
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    tell(
        f"error: the engine was ended by {signal.Signals(-code).name}"
        + (", as it is when memory runs out" if -code == signal.SIGKILL else "")
        + "; a damaged file can do that: emo-export verify and emo-export inspect tell more"
    )
    return 2
