"""A Llama that also decodes in parallel. Exported folders carry this file; transformers must be installed."""

from typing import Any

import torch
from transformers import LlamaForCausalLM

from card_scale.generation.hugging_face.weights import from_llama, names
from card_scale.generation.loop import Generation, generate
from card_scale.generation.model import InferenceModel
from card_scale.generation.shape import DecoderShape


class Continuations:
    """The text that token ids are behind other text, by a tokenizer of transformers."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._letter = tokenizer.encode("a", add_special_tokens=False)

    def continuation(self, ids: list[int]) -> str:
        """With the space that a first word of a text would lose."""
        return self._text([*self._letter, *ids])[len(self._text(self._letter)) :]

    def _text(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)


class CardForCausalLM(LlamaForCausalLM):
    """``LlamaForCausalLM`` with :meth:`generate_parallel`; all else is transformers'."""

    _inference_model: InferenceModel | None = None
    _made_of: list | None = None
    """The weights that it was made of."""

    def generate_parallel(
        self,
        prompts: list[list[int]],
        *,
        new_tokens: int,
        method: str = "self_verified",
        tokenizer: Any = None,
        **options: Any,
    ) -> list[Generation]:
        """Go on with prompts (lists of token ids) by ``new_tokens`` tokens each; see ``generate`` of the loop's file.

        The default method gives the very tokens of greedy or sampled autoregressive decoding in fewer passes.
        ``stop_strings`` need the ``tokenizer``, as they do in transformers' own ``generate``.
        """
        model = self.inference_model()
        model.tokenizer = None if tokenizer is None else Continuations(tokenizer)
        return generate(model, prompts, method=method, new_tokens=new_tokens, **options)

    def inference_model(self) -> InferenceModel:
        """The decoder of the loop with this model's weights; made anew when they have changed."""
        state = [(weight.data_ptr(), weight._version, weight.dtype) for weight in self.parameters()]
        model = self._inference_model
        if model is None or state != self._made_of:
            config: Any = self.config
            shape = DecoderShape(
                rows=config.vocab_size,
                vocabulary=config.vocab_size,
                mask_id=config.mask_token_id,
                start_id=config.eos_token_id,
                layers=config.num_hidden_layers,
                hidden=config.hidden_size,
                heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads,
                ffn=config.intermediate_size,
                length=config.max_position_embeddings,
                rotary_base=config.rope_parameters["rope_theta"],
                norm_epsilon=config.rms_norm_eps,
                tied=config.tie_word_embeddings,
            )
            weights = self.state_dict()
            whole = {
                name: from_llama(name, weights.__getitem__, theirs, shape) for name, theirs in names(shape).items()
            }
            with torch.device("meta"):
                model = InferenceModel(shape)
            model = model.to_empty(device=self.device).to(self.dtype)
            model.fill(whole.__getitem__)
            model.pack()
            model.objective, model.decoders = "card", tuple(config.card_decoders)
            # Not as a submodule: its weights are these.
            object.__setattr__(self, "_inference_model", model)
            object.__setattr__(self, "_made_of", state)
        return model
