"""The decoder in plain torch: what is trained on Megatron's layers, without process groups or an engine.

Decoding, export and evaluation stand on it. Its parameters have the names of the checkpoint's tensors, but that the
gated feed-forward's first matrix, there [gate; up], is two.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from card_scale.generation.cache import KeyValueCache, LayerKeys, SequenceCache
from card_scale.generation.packed import LaidOut, Linear, is_possible, laid_out, product
from card_scale.generation.shape import DecoderShape

MOST_COMPILED_SHAPES = 256
"""Of passes: powers of two of inputs, outputs and sequences, times parts of the cache."""

CAPACITIES = 512
"""Caches of a compiled model hold whole multiples of this."""


def power_of_two(count: int) -> int:
    """Return the least one that is not below ``count``, at least 1."""
    return 1 << (count - 1).bit_length()


class Rotary(nn.Module):
    """Rotary positions: dimensions i and i + size / 2 of a head turn by position / base^(2i / size)."""

    cosines: Tensor
    sines: Tensor

    def __init__(self, shape: DecoderShape, positions: int):
        super().__init__()
        self.base = shape.rotary_base
        for name in ("cosines", "sines"):
            self.register_buffer(name, torch.empty(positions, shape.head_size), persistent=False)
        self.fill()

    def fill(self) -> None:
        """Compute the tables, in float32; again where the module was made on the meta device."""
        length, size = self.cosines.shape
        device = self.cosines.device
        exponents = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
        angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * (1.0 / self.base**exponents)
        angles = torch.cat((angles, angles), -1)
        self.cosines.copy_(angles.cos())
        self.sines.copy_(angles.sin())

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B, Q] → cosines and sines [B, 1, Q, head size]."""
        return self.cosines[positions].unsqueeze(1), self.sines[positions].unsqueeze(1)


def rotate(states: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn queries or keys [B, heads, Q, head size] by their positions."""
    first, second = states.chunk(2, -1)
    return states * cosines + torch.cat((-second, first), -1) * sines


class Attention(nn.Module):
    """Grouped-query attention over the cache and the pass itself."""

    def __init__(self, shape: DecoderShape):
        super().__init__()
        self.head_size = shape.head_size
        self.queries_per_group = shape.heads // shape.kv_heads
        # The rows of a group stand together, its queries, its key, its value: whole groups can be split over ranks.
        rows = (self.queries_per_group + 2) * shape.kv_heads * shape.head_size
        self.linear_qkv = Linear(shape.hidden, rows)
        self.linear_proj = Linear(shape.hidden, shape.hidden)

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor], look: "Look", layer: int) -> Tensor:
        rows, inputs = hidden.shape[:2]
        groups = self.linear_qkv(hidden).view(rows, inputs, -1, self.queries_per_group + 2, self.head_size)
        queries, keys, values = groups.split((self.queries_per_group, 1, 1), 3)
        queries = rotate(queries.flatten(2, 3).transpose(1, 2), *turn)
        keys, values = rotate(keys.squeeze(3).transpose(1, 2), *turn), values.squeeze(3).transpose(1, 2)
        if look.writer is not None:
            keys, values = look.writer.write(layer, keys, values)
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=look.mask,
            is_causal=look.is_causal,
            enable_gqa=self.queries_per_group > 1,
        )
        return self.linear_proj(attended.transpose(1, 2).flatten(2))


class Look:
    """What each input of a pass sees, and where its keys go.

    ``mask`` is added to the scores, [B or 1, 1, Q, keys] of 0 and -inf, or None; ``is_causal`` stands for a mask that
    is a square's lower triangle.
    """

    def __init__(self, mask: Tensor | None, is_causal: bool = False, writer: LayerKeys | None = None):
        self.mask, self.is_causal, self.writer = mask, is_causal, writer


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: DecoderShape):
        super().__init__()
        self.gate = Linear(shape.hidden, shape.ffn)
        self.up = Linear(shape.hidden, shape.ffn)
        self.linear_fc2 = Linear(shape.ffn, shape.hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear_fc2(F.silu(self.gate(hidden)) * self.up(hidden))


class Layer(nn.Module):
    """hidden += attention(norm(hidden)); hidden += mlp(norm(hidden))."""

    def __init__(self, shape: DecoderShape, index: int):
        super().__init__()
        self.index = index
        self.attention_norm = nn.RMSNorm(shape.hidden, shape.norm_epsilon)
        self.attention = Attention(shape)
        self.mlp_norm = nn.RMSNorm(shape.hidden, shape.norm_epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, hidden: Tensor, turn: tuple[Tensor, Tensor], look: Look) -> Tensor:
        hidden = hidden + self.attention(self.attention_norm(hidden), turn, look, self.index)
        return hidden + self.mlp(self.mlp_norm(hidden))


class InferenceModel(nn.Module):
    """A trained decoder. Build it with :func:`card_scale.generation.load`.

    Attributes:
        shape: its sizes.
        kv_heads: key and value heads that this process holds (tensor parallelism splits them).
        tokenizer: of its tokens, None where there is none.
        objective: name of the objective that it was trained by.
        decoders: methods of generation that it can be decoded by, None for any.
        run: one pass, as :meth:`forward` or compiled (:meth:`compile_passes`).
    """

    tokenizer: Any = None
    objective: str = "unknown"
    decoders: tuple[str, ...] | None = None
    is_compiled = False

    def __init__(self, shape: DecoderShape):
        super().__init__()
        self.shape = shape
        self.kv_heads = shape.kv_heads
        self.embedding = nn.Embedding(shape.rows, shape.hidden)
        # The query about a token stands at its position, one behind the last token that is read.
        self.rotary = Rotary(shape, shape.length + shape.two_streams)
        self.layers = nn.ModuleList(Layer(shape, index) for index in range(shape.layers))
        self.final_norm = nn.RMSNorm(shape.hidden, shape.norm_epsilon)
        self.head = None if shape.tied else Linear(shape.hidden, shape.rows)
        self.embedding_copy: LaidOut | None = None
        """Where it is the output matrix too."""
        self.run: Callable[..., Tensor] = self.forward
        self.spare_cache: KeyValueCache | None = None
        """Of a compiled model, for its next generation."""

    def compile_passes(self, **options: Any) -> None:
        """Compile a pass as one graph; passes then have few shapes. ``options`` are torch.compile's.

        On a GPU its kernels are replayed as a CUDA graph, unless the options name another mode.
        """
        if not options and self.embedding.weight.is_cuda:
            options = {"mode": "reduce-overhead"}
        self.unpack()  # the compiler lays out weights by itself
        torch._dynamo.config.recompile_limit = MOST_COMPILED_SHAPES
        self.run = torch.compile(self.forward, fullgraph=True, dynamic=False, **options)
        self.is_compiled = True

    def pack(self) -> None:
        """Hold a second copy of the larger weights, laid out for passes of few inputs: on a CPU, in float32, where
        there is room. A copy is left unused once its weight changes."""
        linears = [module for module in self.modules() if isinstance(module, Linear)]
        tied = [self.embedding.weight] if self.head is None else []
        if self.is_compiled or not is_possible([*tied, *(linear.weight for linear in linears)]):
            return
        for linear in linears:
            linear.copy = laid_out(linear.weight)
        if tied:
            self.embedding_copy = laid_out(self.embedding.weight)

    def unpack(self) -> None:
        """Forget what :meth:`pack` has laid out."""
        self.embedding_copy = None
        for module in self.modules():
            if isinstance(module, Linear):
                module.copy = None

    @torch.no_grad()
    def fill(self, read: Callable[[str], Tensor]) -> None:
        """Set all parameters; ``read`` gives a whole parameter by its name in a checkpoint.

        Raises ValueError for one of another shape.
        """
        for name, parameter in self.named_parameters():
            value = None
            for half, suffix in enumerate((".gate.weight", ".up.weight")):
                if name.endswith(suffix):
                    value = read(name.removesuffix(suffix) + ".linear_fc1.weight").chunk(2)[half]
            value = read(name) if value is None else value
            if value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
            parameter.copy_(value)
        # As in training: narrower angles would be other positions.
        self.rotary.float().fill()

    def new_cache(self, rows: int, capacity: int) -> SequenceCache:
        """An empty cache for ``rows`` sequences: of a compiled model the last one given back, if it fits."""
        if not self.is_compiled:
            return self._empty_cache(rows, capacity, is_static=False)
        rows, capacity = power_of_two(rows), -(-capacity // CAPACITIES) * CAPACITIES
        spare, self.spare_cache = self.spare_cache, None
        if spare is not None and spare.has_sizes(rows, self.kv_heads, capacity, self.embedding.weight):
            spare.clear()
            return spare
        cache = self._empty_cache(rows, capacity, is_static=True)
        for buffer in (*cache.keys, *cache.values):
            # A CUDA graph may write to it in place, and is of its address.
            torch._dynamo.mark_static_address(buffer)
        return cache

    def give_back(self, cache: SequenceCache) -> None:
        """Take back a cache that nobody uses any more."""
        if self.is_compiled and isinstance(cache, KeyValueCache):
            self.spare_cache = cache

    def _empty_cache(self, rows: int, capacity: int, *, is_static: bool) -> KeyValueCache:
        shape, like = self.shape, self.embedding.weight
        layers = range(shape.layers)
        return KeyValueCache(layers, rows, self.kv_heads, capacity, shape.head_size, like, is_static=is_static)

    def forward(self, tokens: Tensor, positions: Tensor, look: Look, read: Tensor | None = None) -> Tensor:
        """Run one pass.

        Args:
            tokens: int64 [B, Q].
            positions: int64 [B, Q], of each token in its sequence.
            look: what each token sees.
            read: int64 [B, R], the inputs whose outputs are wanted; None for all.

        Returns:
            float32 [B, R, vocabulary] logits; those of [MASK], which no text contains, are -inf.
        """
        hidden = self.embedding(tokens)
        turn = tuple(part.to(hidden.dtype) for part in self.rotary(positions))
        for layer in self.layers:
            hidden = layer(hidden, turn, look)
        if read is not None:
            hidden = hidden.gather(1, read[:, :, None].expand(-1, -1, hidden.shape[-1]))
        return self.read_out(hidden)

    def read_out(self, hidden: Tensor) -> Tensor:
        """The last layer's output [B, R, hidden] → float32 logits [B, R, vocabulary], -inf for [MASK]."""
        hidden = self.final_norm(hidden)
        logits = product(hidden, self.embedding.weight, self.embedding_copy) if self.head is None else self.head(hidden)
        logits = logits[..., : self.shape.vocabulary].float()
        logits[..., self.shape.mask_id] = -torch.inf
        return logits

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """The logits of whole sequences, int64 [B, T] → float32 [B, T, vocabulary]; -inf for [MASK].

        Output n is about token n + 1, or with ``shape.in_place`` about token n itself. Raises ValueError for sequences
        longer than the model's length, or of another shape or other ids.
        """
        self.check_tokens(tokens)
        count = tokens.shape[1]
        positions = torch.arange(count, device=tokens.device)
        block = self.shape.block
        is_causal, is_whole = block == 1, block >= count
        mask = None if is_causal or is_whole else self.additive(block_visible(positions, block))
        return self(tokens, positions.expand(len(tokens), -1), Look(mask, is_causal))

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise ValueError unless ``tokens`` are whole sequences that the model can read: int64 [B, T]."""
        if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.dim() != 2 or not tokens.numel():
            raise ValueError("tokens must be an int64 tensor [B, T] with at least one token")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < self.shape.rows:
            raise ValueError(
                f"tokens are from {int(tokens.min())} to {int(tokens.max())}, the model has {self.shape.rows}"
            )
        if tokens.shape[1] > self.shape.length:
            raise ValueError(f"{tokens.shape[1]} tokens are more than the model's length {self.shape.length}")

    def additive(self, visible: Tensor) -> Tensor:
        """bool [..., Q, keys] → the mask that is added to the scores."""
        zeros = torch.zeros((), dtype=self.embedding.weight.dtype, device=visible.device)
        return torch.where(visible, zeros, -torch.inf)


def block_visible(positions: Tensor, block: int) -> Tensor:
    """int64 [..., Q] → bool [..., Q, Q], (query, key): a position sees its block and those before it."""
    blocks = positions // block
    return blocks[..., None, :] <= blocks[..., :, None]
