"""A checkpoint as a model of lm-evaluation-harness (``pip install lm_eval``)."""

from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from card_scale.generation.load import TrainedModel, load
from card_scale.generation.loop import generate
from card_scale.generation.scoring import Scored, is_exact, score
from card_scale.generation.stopping import text_before_stop

NEW_TOKENS = 256
"""Of a request that does not say how many."""


@register_model("card_scale")
class HarnessModel(TemplateLM):
    """Scores and generates for lm-evaluation-harness.

    Args:
        pretrained: checkpoint directory, or a model that is loaded.
        device: to load it on.
        batch_size: sequences a pass.
        method: of generation; by default the first that the model's objective names.
        draws: of a bound's estimate, for objectives whose likelihood is one.
        generation: further options of :func:`card_scale.generation.generate`.
    """

    def __init__(
        self,
        pretrained: str | TrainedModel,
        device: str = "cpu",
        batch_size: int | str = 16,
        method: str | None = None,
        draws: int = 32,
        **generation: Any,
    ):
        super().__init__()
        self.model = pretrained if isinstance(pretrained, TrainedModel) else load(pretrained, device)
        self.batch_size, self.draws, self.generation = int(batch_size), draws, generation
        self.method = method or (self.model.decoders or ("ar",))[0]

    @property
    def likelihood(self) -> str:
        """What a likelihood of this model is."""
        return "exact" if is_exact(self.model) else f"bound from {self.draws} draws: the true one is no lower"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps beside its results."""
        return {
            "objective": self.model.objective,
            "likelihood": self.likelihood,
            "method": self.method,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
        }

    @property
    def eot_token_id(self) -> int:
        """End of document, which also stands before the first token of a text."""
        return self.model.tokenizer.eos_id

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's caches."""
        return self.model.tokenizer.sha256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_keywords: Any) -> list[int]:
        """Token ids, behind an end of document unless ``add_special_tokens`` is false."""
        return [*([] if add_special_tokens is False else [self.eot_token_id]), *self.model.tokenizer.encode(string)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_keywords: Any
    ) -> list[tuple[float, bool]]:
        wanted = [Scored(context, continuation) for _, context, continuation in requests]
        scores = score(self.model, wanted, batch=self.batch_size, draws=self.draws)
        return [(one.log_likelihood, one.is_greedy) for one in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Log-likelihood of whole texts, in windows of the model's length that share no scored token."""
        wanted: list[Scored] = []
        counts = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.eot_token_id,
                max_seq_len=self.model.shape.length - self.model.shape.in_place,
                context_len=1,
            )
            scored = [Scored(*map(list, make_disjoint_window(window))) for window in windows]
            wanted += scored
            counts.append(len(scored))
        scores = iter(score(self.model, wanted, batch=self.batch_size, draws=self.draws))
        return [sum(next(scores).log_likelihood for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Go on with contexts until a stop string, the end of the document or the wanted number of tokens."""
        alike: dict[tuple[tuple[str, ...], int, float], list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(self._options(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        for (stops, new_tokens, temperature), indices in alike.items():
            for begin in range(0, len(indices), self.batch_size):
                batch = indices[begin : begin + self.batch_size]
                contexts = [self.tok_encode(requests[index].args[0]) for index in batch]
                found = generate(
                    self.model,
                    [context[-(self.model.shape.length - new_tokens) :] for context in contexts],
                    method=self.method,
                    new_tokens=new_tokens,
                    temperature=temperature,
                    stop_tokens=(self.eot_token_id,),
                    stop_strings=stops,
                    **self.generation,
                )
                for index, one in zip(batch, found, strict=True):
                    texts[index] = text_before_stop(self.model.tokenizer.continuation(one.tokens), stops)
        return texts

    def _options(self, options: dict[str, Any]) -> tuple[tuple[str, ...], int, float]:
        """Stop strings, new tokens and temperature of a request."""
        stops = options.get("until") or []
        stops = tuple(stop for stop in ([stops] if isinstance(stops, str) else stops) if stop)
        new_tokens = min(options.get("max_gen_toks", NEW_TOKENS), self.model.shape.length - 1)
        temperature = options.get("temperature", 0.0) if options.get("do_sample", True) else 0.0
        return stops, new_tokens, temperature
