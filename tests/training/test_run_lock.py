"""The lock of a run directory: one living owner, dead ones replaced, nothing written by who has lost it."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from card_scale.errors import ForeignRunError
from card_scale.training.run_lock import Owner, RunLock, _started


def lock_of(directory, **seconds):
    return RunLock(directory, **{"heartbeat_seconds": 0.02, "late_seconds": 0.3, "say": lambda _: None, **seconds})


def leave_lock(directory, **changes):
    """Write the lock of another owner."""
    directory.mkdir(parents=True, exist_ok=True)
    owner = Owner.this_process()._replace(**changes)
    (directory / "run.lock").write_text(json.dumps(owner._asdict()))
    return owner


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_it_is_held_and_given_back(tmp_path):
    directory = tmp_path / "new" / "run"
    with lock_of(directory) as lock:
        lock.check_held()
        lock.check_held()
        owner = json.loads((directory / "run.lock").read_text())
        assert (owner["host"], owner["pid"]) == (socket.gethostname(), os.getpid())
    assert os.listdir(directory) == []
    with lock_of(directory):
        pass


def test_a_living_owner_is_respected(tmp_path):
    told = []
    with lock_of(tmp_path) as lock:
        for ask in (lock_of(tmp_path, say=told.append).__enter__, lock_of(tmp_path, say=told.append).check_free):
            with pytest.raises(ForeignRunError, match=rf"in use by process {os.getpid()} on .*run\.lock\). Wait until"):
                ask()
            assert told == [], "nothing to wait for"
        lock.check_held()
    lock_of(tmp_path).check_free()


@pytest.mark.parametrize(
    "kind", ["dead", "number of another process", "before a restart of the machine", "in another container"]
)
def test_a_dead_owner_of_this_machine_is_replaced(tmp_path, kind):
    changes = {
        "dead": {"pid": dead_pid()},
        "number of another process": {"started": _started(os.getpid()) - 1},
        "before a restart of the machine": {"boot": "another"},
        "in another container": {"namespace": "pid:[1]"},
    }[kind]
    leave_lock(tmp_path, **changes)
    told = []
    with lock_of(tmp_path, say=told.append) as lock:
        # Of another boot one cannot ask: the machine may be another one with the same name.
        assert ["waiting" in line for line in told] == ([True] if {"boot", "namespace"} & changes.keys() else [])
        lock.check_held()
    assert os.listdir(tmp_path) == []


def test_a_zombie_is_dead(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    leave_lock(tmp_path, pid=process.pid, started=_started(process.pid))
    with pytest.raises(ForeignRunError):
        lock_of(tmp_path).check_free()
    process.kill()
    while _started(process.pid) is not None:
        time.sleep(0.01)
    with lock_of(tmp_path):
        pass
    process.wait()


def test_a_heartbeat_from_another_machine_is_respected(tmp_path):
    leave_lock(tmp_path, host="elsewhere")
    told, ended = [], threading.Event()

    def beat():
        while not ended.wait(0.02):
            os.utime(tmp_path / "run.lock")

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(ForeignRunError, match=r"in use by process .* on elsewhere"):
            lock_of(tmp_path, late_seconds=30.0, heartbeat_seconds=0.1, say=told.append).__enter__()
    finally:
        ended.set()
        beating.join()
    assert "waiting up to 30 s for a sign of life" in told[0]


@pytest.mark.parametrize("content", ["elsewhere", "damaged", "empty"])
def test_silence_ends_a_claim(tmp_path, content):
    leave_lock(tmp_path, host="elsewhere")
    if content != "elsewhere":
        (tmp_path / "run.lock").write_text("" if content == "empty" else '{"host": 1}')
    begin = time.monotonic()
    with lock_of(tmp_path) as lock:
        assert time.monotonic() - begin >= 0.3
        lock.check_held()


def test_an_owner_that_ends_while_it_is_watched_makes_room(tmp_path):
    leave_lock(tmp_path, host="elsewhere")
    threading.Timer(0.1, (tmp_path / "run.lock").unlink).start()
    begin = time.monotonic()
    with lock_of(tmp_path, late_seconds=30.0, heartbeat_seconds=0.1) as lock:
        lock.check_held()
    assert time.monotonic() - begin < 5


def test_who_has_lost_the_lock_may_not_write(tmp_path):
    with lock_of(tmp_path) as lock:
        other = leave_lock(tmp_path, host="elsewhere", pid=7)
        with pytest.raises(ForeignRunError, match="belongs to process 7 on elsewhere: another job has gone on"):
            lock.check_held()
        before = os.stat(tmp_path / "run.lock").st_mtime_ns
        time.sleep(0.1)
        assert os.stat(tmp_path / "run.lock").st_mtime_ns == before, "its heartbeat has ended"
    assert Owner(**json.loads((tmp_path / "run.lock").read_text())) == other
    (tmp_path / "run.lock").unlink()
    with pytest.raises(ForeignRunError, match="is gone"):
        lock.check_held()


def test_the_heartbeat_goes_on(tmp_path):
    with lock_of(tmp_path):
        seen, end = set(), time.monotonic() + 30
        while len(seen) < 4:
            assert time.monotonic() < end
            seen.add(os.stat(tmp_path / "run.lock").st_mtime_ns)
            time.sleep(0.02)


@pytest.mark.parametrize("claims", [0, 2])
def test_of_many_successors_one_gets_it(tmp_path, claims):
    for _ in range(10):
        owner = leave_lock(tmp_path, pid=dead_pid())
        for _ in range(claims):
            # A successor that was killed before its own lock was in place.
            claim = tmp_path / f"run.lock.after-{owner.token}"
            owner = Owner.this_process()._replace(pid=owner.pid)
            claim.write_text(json.dumps(owner._asdict()))
        start, held, refused = threading.Barrier(8), [], []

        def succeed(start=start, held=held, refused=refused):
            start.wait()
            lock = lock_of(tmp_path)
            try:
                held.append(lock.__enter__())
            except ForeignRunError:
                refused.append(lock)

        threads = [threading.Thread(target=succeed) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(held), len(refused)) == (1, 7)
        held[0].check_held()
        held[0].__exit__()
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("answer", [errno.EPERM, errno.EEXIST])
def test_file_systems_without_links_and_with_doubtful_ones(tmp_path, monkeypatch, answer):
    link = os.link

    def doubtful(source, target):
        if answer == errno.EEXIST:
            link(source, target)  # made, but the answer was lost
        raise OSError(answer, "as told")

    monkeypatch.setattr(os, "link", doubtful)
    with lock_of(tmp_path) as lock:
        lock.check_held()
        if answer == errno.EPERM:
            with pytest.raises(ForeignRunError):
                lock_of(tmp_path).__enter__()
    assert os.listdir(tmp_path) == []
