"""Signals are held back within a step, and get through in every other case."""

import os
import signal
import threading

import pytest

from metatoolkit.training import interruption
from metatoolkit.training.interruption import DeferredSignals


def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def interruptible():
    """A process that was started in the background may ignore the signal."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_a_signal_waits_for_the_end_of_the_body():
    done = []
    with DeferredSignals() as signals, pytest.raises(KeyboardInterrupt):
        with signals.held_back():
            send()
            done.append(1)
        done.append(2)
    assert done == [1]


def test_a_second_one_goes_through_at_once():
    done = []
    with DeferredSignals() as signals, pytest.raises(KeyboardInterrupt), signals.held_back():
        send()
        done.append(1)
        send()
        done.append(2)
    assert done == [1]


def test_between_two_steps_nothing_is_held_back():
    with DeferredSignals() as signals:
        with signals.held_back():
            pass
        with pytest.raises(KeyboardInterrupt):
            send()
        # Nor is one left over for the next step.
        with signals.held_back():
            pass


def test_a_failing_body_drops_the_signal_that_waited():
    with DeferredSignals() as signals:
        with pytest.raises(ValueError, match="of the step"), signals.held_back():
            send()
            raise ValueError("of the step")
        with signals.held_back():
            pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_handlers_of_others_are_called_and_given_back(number):
    received = []
    mine = lambda number, frame: received.append((number, frame is None))  # noqa: E731
    former = signal.signal(number, mine)
    try:
        with DeferredSignals() as signals:
            assert signal.getsignal(number) is not mine
            with signals.held_back():
                send(number)
                assert received == []
            assert received == [(number, True)]
            # Between two steps it is called with the place that was interrupted.
            send(number)
            assert received == [(number, True), (number, False)]
        assert signal.getsignal(number) is mine
        with pytest.raises(ZeroDivisionError), DeferredSignals():
            _ = 1 / 0
        assert signal.getsignal(number) is mine
    finally:
        signal.signal(number, former)


def test_what_python_does_not_handle_does_what_it_did():
    former = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with DeferredSignals():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, former)


def test_outside_the_main_thread_nothing_is_held_back():
    before, failures = signal.getsignal(signal.SIGINT), []

    def work():
        try:
            with DeferredSignals() as signals, signals.held_back():
                assert signal.getsignal(signal.SIGINT) is before
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_is_interrupted_at_once():
    with DeferredSignals() as signals, signals.held_back():
        child = os.fork()
        if child == 0:
            try:
                send()
            except KeyboardInterrupt:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_signals_that_a_system_does_not_have_are_left_out(monkeypatch):
    monkeypatch.setattr(interruption, "_SIGNALS", ("SIGNONE", "SIGINT"))
    with DeferredSignals() as signals, pytest.raises(KeyboardInterrupt), signals.held_back():
        send()
