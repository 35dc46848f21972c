"""Stop requests with real signals, sent to this process."""

import os
import signal

import pytest

from card_scale.training.stop import STOP_SIGNALS, StopRequest


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_else(number):
    with StopRequest() as stop:
        assert not stop.requested
        assert stop.reason is None
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.reason == number.name


def test_the_first_reason_stays():
    with StopRequest() as stop:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.reason == "SIGUSR1"


def test_a_second_interrupt_does_not_wait():
    seconds = iter([0.0, 0.5, 5.0])
    with StopRequest(clock=lambda: next(seconds)) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's echo of the terminal's
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.reason == "SIGINT"


def test_handlers_return():
    def mine(*_):
        pass

    before = signal.signal(signal.SIGUSR1, mine)
    try:
        others = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with StopRequest():
            assert signal.getsignal(signal.SIGUSR1) is not mine
        assert signal.getsignal(signal.SIGUSR1) is mine
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == others
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_handlers_return_after_an_error():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
