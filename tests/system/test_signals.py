"""SIGTERM and SIGHUP end a program as Ctrl-C does."""

from __future__ import annotations

import signal
from threading import Thread, main_thread

import pytest

from runtime.system.signals import Terminated, terminating, uninterrupted


def send(number: int) -> None:
    """Send a signal to the main thread: sent to the process, another thread may take it, too late."""
    signal.pthread_kill(main_thread().ident or 0, number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_is_an_exception_like_that_of_ctrl_c(number: signal.Signals, code: int) -> None:
    with pytest.raises(KeyboardInterrupt, match=number.name) as caught, terminating():
        send(number)
    assert isinstance(caught.value, Terminated)
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with terminating():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_wait_for_the_end_of_what_must_be_whole(number: signal.Signals) -> None:
    done = []

    def work() -> None:
        with terminating(), uninterrupted():
            send(number)
            send(number)
            done.append("all")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["all"]


def test_other_threads_are_left_alone() -> None:
    done = []

    def work() -> None:
        with terminating(), uninterrupted():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.SIG_DFL]
