import io

from card_scale.corpus.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines_of(seconds: list[float], shown: bool = True, stream=None) -> str:
    """What is shown where 10 MB of 80 are done at each of some seconds after the beginning."""
    clock = iter([100.0, *(100.0 + second for second in seconds)])
    stream = stream or io.StringIO()
    with Progress("build", 80_000_000, shown, 5_000_000, stream=stream, clock=lambda: next(clock)) as progress:
        for _ in seconds:
            progress.update(10_000_000)
    return stream.getvalue()


def test_a_log_has_a_line_soon_and_then_now_and_again():
    assert lines_of([1, 4.9, 5, 6, 34, 36, 60, 66]) == (
        "build: 35.0 of 80.0 MB (44%), 5 s\nbuild: 65.0 of 80.0 MB (81%), 36 s\nbuild: 85.0 of 80.0 MB (106%), 66 s\n"
    )


def test_quick_work_and_work_that_is_not_to_be_shown_have_none():
    assert lines_of([1, 2, 3]) == ""
    assert lines_of([10, 100], shown=False) == ""
    assert lines_of([10, 100], shown=False, stream=Terminal()) == ""


def test_a_terminal_has_a_bar():
    shown = lines_of([10, 100], stream=Terminal())
    assert "build" in shown
    assert "MB (" not in shown
