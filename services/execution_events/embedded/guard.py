"""Runner of one command, which it stops when standard input ends.

    python -I -S guard.py REPORT_FD STOP_SIGNAL GRACE USER GROUP COMMAND [ARGUMENT ...]

The process that starts a guard keeps the other end of its standard input open. When that process
ends, even by SIGKILL, the input ends, and the guard sends STOP_SIGNAL to the command and SIGKILL
GRACE seconds later. The guard exits with the command's exit code, or with 128 + n after signal n.
It kills the rest of the command's process group.

On Linux the kernel also kills the command when the guard itself is killed.

USER and GROUP are numbers, or -1 to change nothing. On REPORT_FD the guard writes "pid <n>", and
"error <text>" if the command could not be started, and then closes it.

It imports little, because one guard starts for each server.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from typing import NoReturn

IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1
NOT_STARTED = 127


def main(arguments: list[str]) -> int:
    report, stop_signal = int(arguments[0]), int(arguments[1])
    grace, user, group = float(arguments[2]), int(arguments[3]), int(arguments[4])
    os.set_inheritable(report, False)
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    woken = _wake_on_child_exit()
    pid = _start(arguments[5:], user, group, report)
    with contextlib.suppress(OSError):  # the parent may have ended; so has the input
        os.write(report, b"pid %d\n" % pid)
    os.close(report)
    status = _supervise(pid, woken, stop_signal, grace)
    _kill(-pid)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _wake_on_child_exit() -> int:
    """Return a descriptor that becomes readable when the command may have exited."""
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    return woken


def _start(command: list[str], user: int, group: int, report: int) -> int:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    guard = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            _become(command, user, group, guard, libc)
        except BaseException as error:
            os.write(report, f"error {command[0]}: {error}\n".encode(errors="replace"))
        finally:
            os._exit(NOT_STARTED)
    return pid


def _become(
    command: list[str], user: int, group: int, guard: int, libc: ctypes.CDLL | None
) -> NoReturn:
    # Ignored signals stay ignored after exec; Python ignores the last two itself.
    for number in (*IGNORED, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.setpgid(0, 0)
    if user >= 0:
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    if libc is not None:
        # After setuid, which clears it. The guard may have died before this line.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(NOT_STARTED)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execvp(command[0], command)  # noqa: S606


def _supervise(pid: int, woken: int, stop_signal: int, grace: float) -> int:
    """Return the wait status of the command once it has exited."""
    watched = [0, woken]
    deadline: float | None = None
    while True:
        exited, status = os.waitpid(pid, os.WNOHANG)
        if exited:
            return status
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select(watched, [], [], timeout)
        if woken in readable:
            os.read(woken, 512)
        if 0 in readable and not os.read(0, 512):
            watched.remove(0)
            os.kill(pid, stop_signal)
            deadline = time.monotonic() + grace
        elif deadline is not None and time.monotonic() >= deadline:
            deadline = None
            _kill(-pid)
            _kill(pid)


def _kill(target: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(target, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
