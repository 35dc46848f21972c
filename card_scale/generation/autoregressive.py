"""One token a pass: the baseline of every figure."""

from card_scale.generation.decoder import Choices, Plan, SequenceDecoder


class Autoregressive(SequenceDecoder):
    """Each token from all before it."""

    scratch = 1

    def plan(self) -> Plan:
        tokens, end = self.uncached, len(self.tokens)
        return Plan(tokens, list(range(self.cached, end)), [len(tokens) - 1], [end])

    def take(self, choices: Choices) -> int:
        count = len(self.tokens) - self.cached
        self.append(choices.tokens)
        return count
