"""What is said while somebody waits."""

import threading
import types

from card_scale import waiting


def test_a_long_wait_is_told_of_ever_more_rarely(monkeypatch):
    pauses, ended = [], threading.Event()

    class Event:
        """Lets six pauses pass at once, and notes how long they would have been."""

        def wait(self, seconds):
            pauses.append(seconds)
            return len(pauses) > 6 or ended.is_set()

        def set(self):
            ended.set()

    said, sixth = [], threading.Event()

    def say(text):
        said.append(text)
        if len(said) == 6:
            sixth.set()

    monkeypatch.setattr(waiting, "threading", types.SimpleNamespace(Event=Event, Thread=threading.Thread))
    with waiting.told(lambda: f"line {len(said)}", say, first_seconds=3.0):
        assert sixth.wait(60)
    assert pauses[:7] == [3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0]
    assert said == [f"line {number}" for number in range(6)]


def test_a_short_one_is_not_told_of_and_ends_at_once():
    said = []
    with waiting.told(lambda: "line", said.append, first_seconds=600):
        pass
    assert said == []
