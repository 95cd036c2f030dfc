"""The program: a command whose engine may crash runs in a child, and a crash is a refusal.

The child is a fork from before anything heavy is imported, so it costs milliseconds and has the
terminal, the pipes and the arguments of its parent. Linux only: elsewhere a fork may not use all of
the system's libraries, and a crash is what the system makes of it.
"""

from __future__ import annotations

import os
import signal
import sys

OPENING = ("run", "chat", "serve")
"""Commands that open an engine in their own process."""


def program() -> None:
    """Run the command line and exit with its code; 2 where a signal ended the engine."""
    _begin()
    from emo_export.cli.main import main

    if sys.platform == "linux" and sys.argv[1:2] and sys.argv[1] in OPENING:
        _in_a_child()
    main()


def _begin() -> None:
    """Undo what the caller, and Python, made of signals, where it would lead astray.

    Ctrl-C while we are imported ends the process, and shows no stack. Who ignores SIGCHLD is never
    told of a child's end nor of its code; a time limit on a device is a SIGALRM.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    ours = [getattr(signal, name) for name in ("SIGCHLD", "SIGALRM") if hasattr(signal, name)]
    for number in ours:
        signal.signal(number, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ours)


def _in_a_child() -> None:
    """Return in a child; its parent waits for it, and exits with its code."""
    from emo_export.base.tied import tied
    from emo_export.base.uninterrupted import SIGNALS
    from emo_export.cli.output import open_streams, tell

    open_streams()
    tie = tied()
    unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, signal.SIGCHLD))
    try:
        child = os.fork()
    except OSError as error:
        tell(f"error: no process can be started for the engine ({error.strerror})")
        sys.exit(2)
    if child:
        sys.exit(_code_of(child))
    tie()
    signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # no debugger where ggml gives up


def _code_of(child: int) -> int:
    """The exit code of a child, to which signals to this process alone are sent on."""
    from emo_export.base.uninterrupted import SIGNALS

    while True:
        heard = signal.sigwaitinfo((*SIGNALS, signal.SIGCHLD))
        if heard.si_signo != signal.SIGCHLD:
            # A terminal (si_code > 0) tells the child itself; a second Ctrl-C would mean more.
            if heard.si_code <= 0:
                os.kill(child, heard.si_signo)
            continue
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return _told(os.waitstatus_to_exitcode(status))


def _told(code: int) -> int:
    """The exit code for a child's (less than 0: a signal's number), and a sentence on a signal."""
    from emo_export.base.uninterrupted import SIGNALS
    from emo_export.cli.output import tell

    if code >= 0:
        return code
    if -code in SIGNALS:  # before it listened
        tell("interrupted")
        return 130
    tell(
        f"error: the engine was ended by {signal.Signals(-code).name}"
        + (", as it is when memory runs out" if -code == signal.SIGKILL else "")
        + "; a damaged file can do that: emo-export verify and emo-export inspect tell more"
    )
    return 2
