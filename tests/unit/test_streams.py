"""The standard streams of a command; closed and full ones are tested with commands."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
from array import array

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="the length of a pipe's content is asked")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_signal_during_a_write_loses_nothing(stream: str, unbuffered: str) -> None:
    size = 1_000_000
    write = "write_text" if stream == "stdout" else "write_note"
    program = (
        "import signal; from execution_events.cli import streams;"
        " signal.signal(signal.SIGUSR1, lambda *_: None); streams.prepare_streams();"
        f" streams.{write}('a' * {size})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        stdout=subprocess.PIPE if stream == "stdout" else None,
        stderr=subprocess.PIPE if stream == "stderr" else None,
    ) as process:
        output = process.stdout or process.stderr
        assert output is not None
        filled = 0
        while filled < 65536:
            [filled] = array("i", fcntl.ioctl(output, termios.FIONREAD, bytes(4)))
        process.send_signal(signal.SIGUSR1)
        written = len(output.read())
    assert (written, process.returncode) == (size, 0)
