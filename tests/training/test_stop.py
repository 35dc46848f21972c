"""Stop requests with real signals, sent to this process."""

import os
import signal

import pytest

from card_scale.errors import ConfigurationError
from card_scale.training import exit_record
from card_scale.training.stop import STOP_SIGNALS, StopRequest, TimeLimit, time_limit


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_sets_the_flag_and_nothing_else(number):
    with StopRequest() as stop:
        assert stop.poll() is None
        os.kill(os.getpid(), number)
        assert stop.poll() == number.name


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


def test_a_file_is_looked_for_once_a_second(tmp_path):
    now = [0.0]
    with StopRequest(clock=lambda: now[0]) as stop:
        stop.watch(tmp_path / "STOP", None)
        assert stop.poll() is None
        (tmp_path / "STOP").touch()
        now[0] = 0.9
        assert stop.poll() is None
        now[0] = 1.0
        assert stop.poll() == f"the file {tmp_path / 'STOP'}"
        (tmp_path / "STOP").unlink()
        assert stop.poll() == f"the file {tmp_path / 'STOP'}", "a request stays"


def test_the_time_runs_out(tmp_path):
    now = [100.0]
    with StopRequest(clock=lambda: now[0]) as stop:
        stop.watch(tmp_path / "STOP", TimeLimit(150.0, "run.max_hours 0.1"))
        for now[0] in (100.0, 149.9):
            assert stop.poll() is None
        now[0] = 150.0
        assert stop.poll() == "run.max_hours 0.1"


def test_the_earlier_limit_counts():
    assert time_limit(None, 300, {}, 1000.0, 5.0) is None
    assert time_limit(2.0, 300, {}, 1000.0, 5.0) == (7205.0, "run.max_hours 2")
    slurm = {"SLURM_JOB_END_TIME": "5000"}
    words = "the end of the Slurm job (run.stop_before_end 300 seconds before it)"
    assert time_limit(None, 300, slurm, 1000.0, 5.0) == time_limit(2.0, 300, slurm, 1000.0, 5.0) == (3705.0, words)
    assert time_limit(0.5, 0, slurm, 1000.0, 5.0) == (1805.0, "run.max_hours 0.5")
    assert time_limit(None, 300, slurm, 4900.0, 5.0).end == 55.0, "a short job trains for half of its time"
    assert time_limit(None, 300, slurm, 5100.0, 5.0).end < 5.0, "over"
    with pytest.raises(ConfigurationError, match="SLURM_JOB_END_TIME is 'soon'"):
        time_limit(None, 300, {"SLURM_JOB_END_TIME": "soon"}, 0.0, 0.0)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.poll() is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_launch_script_heard_is_named_in_place_of_the_signal_it_sends(tmp_path):
    environment = {exit_record.NOTES: str(tmp_path)}
    for note, reason in ((None, "SIGUSR1"), ("SIGINT\n", "SIGINT")):
        if note is not None:
            (tmp_path / "stop").write_text(note)
        with StopRequest(lambda: exit_record.cause_of_stop(environment)) as stop:
            assert stop.poll() is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.poll() == reason
    with StopRequest(lambda: exit_record.cause_of_stop(environment)) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.poll() == "SIGTERM"
    assert exit_record.cause_of_stop({}) is None
