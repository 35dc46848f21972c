"""Drafts that cost no input: what followed the last tokens when the text had them before.

Code and lists repeat themselves, and so do small models. A copied draft is checked like any other.
"""

SHORTEST, LONGEST = 2, 4
"""Tokens that must have stood there before, at least and at most."""


class Copies:
    """Where each run of tokens of a sequence stood last."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def learn(self, tokens: list[int]) -> None:
        """Take note of a sequence that has grown. Its last token is left for later: nothing follows it yet."""
        for end in range(max(self._known, SHORTEST), len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self._ends[tuple(tokens[end - length : end])] = end
        self._known = max(self._known, len(tokens))

    def after(self, context: list[int], tokens: list[int], most: int) -> tuple[list[int], int]:
        """Return (what followed the end of ``context`` when ``tokens`` had it before, how many tokens were the same).

        The longest run decides, its latest place. Where ``tokens`` end before ``most`` tokens are found, they repeat
        from that place on. Empty where not even SHORTEST tokens are found.
        """
        for length in range(min(LONGEST, len(context)), SHORTEST - 1, -1):
            end = self._ends.get(tuple(context[-length:]))
            if end is not None:
                period = len(tokens) - end
                return [tokens[end + number % period] for number in range(most)], length
        return [], 0
