"""Signals that end a run, sent to a process for real."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from flows.signals import AGAIN_SECONDS

PROGRAM = """
import signal, time
from flows.signals import ending_gently, stopping_on
from tasks.faults import interrupt
signal.signal(signal.SIGTERM, lambda *_: exit(99))  # as another has it, such as Prefect inside a flow
with {taking}:
    print("ready", flush=True)
    while not interrupt.is_set():
        time.sleep(0.01)
    print("asked", flush=True)
    {then}
"""
SLEEP = "time.sleep(60)"
FIRST = "signal.raise_signal(signal.SIGTERM)"


@pytest.mark.parametrize(
    ("taking", "number"),
    [
        ("stopping_on(signal.SIGHUP)", signal.SIGHUP),
        ("ending_gently()", signal.SIGTERM),
        ("ending_gently()", signal.SIGINT),
    ],
)
def test_the_first_asks_and_the_second_ends(taking: str, number: signal.Signals) -> None:
    program = [sys.executable, "-c", PROGRAM.format(taking=taking, then=SLEEP)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        time.sleep(AGAIN_SECONDS)
        process.send_signal(number)
        assert process.wait(timeout=30) == 130
        assert process.stderr.read() == "denoise: stopping; once more to end at once\n"


def test_the_same_stop_heard_twice_leaves_time_for_the_report() -> None:
    """As systemd and the service both send it. Each signal is the program's own, so that no delay comes between the two."""
    twice = "signal.raise_signal(signal.SIGTERM); print('reported', flush=True)"
    program = PROGRAM.format(taking="ending_gently()", then=twice).replace('print("ready", flush=True)', FIRST)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stdout == "asked\nreported\n"
    assert done.stderr == "denoise: stopping; once more to end at once\n"


def test_what_others_had_set_comes_back() -> None:
    from flows.signals import stopping_on

    before = signal.getsignal(signal.SIGHUP)
    with stopping_on(signal.SIGHUP):
        assert signal.getsignal(signal.SIGHUP) is not before
    assert signal.getsignal(signal.SIGHUP) is before
