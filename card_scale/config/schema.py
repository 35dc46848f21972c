"""The run configuration: one typed tree of groups and keys, each with its default and meaning."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from card_scale.config import checks, strict_yaml
from card_scale.objectives import registry

if TYPE_CHECKING:
    from card_scale.objectives.base import Objective

FilePath = Annotated[str, "a path, in which ~ is the home directory"]
Schedule = Literal["cosine", "wsd", "constant"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
"""Values of ``optimizer.schedule``."""


@dataclass(frozen=True)
class RunConfig:
    dir: FilePath = "runs/default"
    """Run directory: checkpoints, metrics, TensorBoard."""
    seed: int = 1234
    """Seed of initialisation, data order and noise."""
    init_from: FilePath | None = None
    """Checkpoint directory whose weights a new run starts from; the optimizer starts anew."""
    extend: bool = False
    """Let train.steps or data.epochs differ from those that the run was begun with: it goes on from its last
    checkpoint, at the learning rate that a run of the new length has there."""
    timeout_seconds: int = 600
    """Time limit of a collective; a rank that waits longer ends the job (exit code 7). The watchdog's limits of data
    and step lie below it: it can say which rank is waited for."""
    max_hours: float | None = None
    """Save and stop after so many hours (exit code 75); the same command goes on. By default no limit but a Slurm
    job's."""
    stop_before_end: int = 300
    """Save and stop so many seconds before the end of the Slurm job (SLURM_JOB_END_TIME)."""
    ledger: bool = False
    """Record which samples each update saw, for tools/data.py ledger."""
    wandb: str | None = None
    """Weights & Biases project to which the curves go as well, if wandb is installed. With WANDB_MODE=offline they stay
    in the run directory."""


@dataclass(frozen=True)
class ModelConfig:
    layers: int = 4
    """Transformer layers."""
    hidden: int = 192
    """Hidden size."""
    heads: int = 6
    """Attention heads; hidden / heads is the head size."""
    kv_heads: int | None = None
    """Key and value heads, a divisor of heads that shares each among several queries; by default as many as heads."""
    ffn: int = 512
    """Inner size of the gated feed-forward network."""
    length: int = 256
    """Context length L: input tokens of a sample."""
    tie_embeddings: bool = False
    """Use the input embedding as output head."""
    rotary_base: float = 10_000.0
    """Base of the rotary positions' wavelengths."""
    norm_epsilon: float = 1e-5
    """Added to the mean square in every RMSNorm."""
    dropout: float = 0.0
    """Dropout on the embedding and on both residual branches of a layer."""
    attention_backend: Literal["auto", "sdpa", "flex", "split", "dense"] = "auto"
    """Kernel of attention. sdpa: torch's fused kernels (causal, bidirectional, two streams of one-token blocks).
    flex: FlexAttention (GPU). split: blocks in exact pieces. dense: any kind, with the whole mask. auto: the best."""
    loss_backend: Literal["auto", "torch", "fused", "chunked"] = "auto"
    """Kernel of the loss. torch: any device. fused: two Triton kernels, which read the logits once and write the
    gradient over them (GPU). chunked: head and loss of a part of the positions at a time, computed again in the
    backward pass, so that all logits never exist. auto: torch on a CPU, fused on a GPU, chunked for logits above a
    sixteenth of its memory."""

    @property
    def head_size(self) -> int:
        """Size of a query, key or value head."""
        return self.hidden // self.heads

    @property
    def key_value_heads(self) -> int:
        """Key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads


@dataclass(frozen=True)
class DataConfig:
    path: FilePath = ""
    """Dataset directory written by tools/data.py build."""
    validation: FilePath | None = None
    """Dataset directory whose validation split is evaluated; by default data.path."""
    validation_samples: int = 0
    """Validation samples per evaluation, evenly spread over the split; 0 takes them all."""
    train_samples: int = 0
    """Training samples, the first of the stream, that are evaluated beside them; 0 takes none."""
    unique_tokens: int | None = None
    """Keep only the first so many tokens of the training stream."""
    epochs: float | None = None
    """Training length in epochs, instead of train.steps."""
    skip_damaged: int = 0
    """Samples that one start of the command may leave out because a document in them is damaged or cannot be read; one
    more ends the run. 0: the first one does. Evaluations need all of theirs."""
    reshuffle: bool = True
    """Permute the samples anew in each epoch."""


@dataclass(frozen=True)
class ParallelConfig:
    tensor: int = 1
    """Tensor-parallel size."""
    pipeline: int = 1
    """Pipeline-parallel size."""
    virtual_pipeline: int = 1
    """Model chunks per pipeline stage (interleaved 1F1B when above 1)."""
    sequence: bool = False
    """Sequence parallelism: shard activations between tensor-parallel regions along the sequence."""
    engine: Literal["deepspeed", "fsdp2"] = "deepspeed"
    """Sharding engine over the data-parallel ranks."""
    zero: int | None = None
    """DeepSpeed ZeRO stage 0-3 (default 3); under fsdp2 sharding is always full and only 3 is accepted."""
    deepspeed: FilePath | None = None
    """DeepSpeed JSON file; "auto" values are filled from this configuration."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What of a layer's activations is recomputed in the backward pass instead of kept: none; all but the outputs of
    matrix products and attention (selective, in compiled layers); all (full)."""


@dataclass(frozen=True)
class OptimizerConfig:
    lr: float = 3e-4
    """Peak learning rate."""
    min_lr: float = 0.0
    """Learning rate at the end of the schedule."""
    schedule: Schedule = "cosine"
    """Learning-rate schedule after warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms have none."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's betas."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    clip: float = 1.0
    """Largest global gradient norm; 0 does not clip."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights; 0 keeps none."""


@dataclass(frozen=True)
class TrainConfig:
    steps: int | None = None
    """Updates to make (or data.epochs)."""
    global_batch: int = 8
    """Sequences per update over all ranks."""
    micro_batch: int = 1
    """Sequences per data-parallel rank and forward pass."""
    log_every: int = 10
    """Steps between log lines; 0 writes one after the last step."""
    eval_every: int = 0
    """Steps between evaluations; 0 evaluates before the first and after the last step."""
    save_every: int = 0
    """Steps between checkpoints; 0 saves at the end only."""
    async_save: bool = False
    """Write checkpoints beside training, from a copy of this rank's share in host memory (12 bytes a parameter, 16
    with optimizer.ema, divided by the ranks); the last one and that of a stop are waited for."""
    failed_saves: int = 2
    """Saves in a row that the file system may refuse (a full disk) before the run ends; the next one is tried."""
    keep_last: int = 0
    """Checkpoints to keep, the newest so many; 0 keeps all, 1 is refused."""
    keep_every: int = 0
    """Checkpoints at multiples of so many steps, itself a multiple of save_every, are kept as well; 0 none."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the forward and backward pass; the optimizer always holds fp32 weights."""
    compile: bool | None = None
    """Compile each decoder layer as one graph (torch.compile). By default where parallel.recompute is selective, and on
    a GPU where parallel.tensor is 1: above it a compiled layer gives up Megatron's overlap of collectives, which pays
    or not by measurement."""


@dataclass(frozen=True)
class GuardConfig:
    policy: Literal["raise", "skip", "rollback"] = "raise"
    """What follows an update whose loss or gradient norm is not finite, or spikes: it is never applied, on any rank.
    raise: the run ends (exit code 6). skip: it goes on with the next batch. rollback: like skip, but where skip gives
    up the run goes back to its last checkpoint and passes over all batches since."""
    spike: float = 0.0
    """A loss or gradient norm so many standard deviations above its mean over the window is a spike; 0: none is."""
    window: int = 128
    """Applied updates that the mean is over; no spike is seen before half of them."""
    patience: int = 10
    """Refused updates in a row, up to an update that is logged, which skip and rollback bear."""
    rollbacks: int = 3
    """Times that one start of the command goes back."""


@dataclass(frozen=True)
class WatchdogConfig:
    start: int = 3600
    """Seconds that a rank may be silent until its first update is made: building, loading, compiling."""
    data: int | None = None
    """Seconds that it may wait for a batch; by default a quarter of run.timeout_seconds."""
    step: int | None = None
    """Seconds that the passes of a micro-batch or the optimizer may take; by default half of run.timeout_seconds."""
    evaluation: int = 3600
    """Seconds that one pass of an evaluation may take, the first with its compilation."""
    save: int = 3600
    """Seconds for which a checkpoint may keep training waiting."""

    def seconds(self, timeout_seconds: int) -> dict[str, float]:
        """Return the limit of each phase."""
        return {
            "start": self.start,
            "data": timeout_seconds / 4 if self.data is None else self.data,
            "step": timeout_seconds / 2 if self.step is None else self.step,
            "evaluation": self.evaluation,
            "save": self.save,
        }


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run. Build it with :func:`card_scale.config.load`; :meth:`check` has then passed."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: "Objective" = field(default_factory=lambda: registry.create(registry.DEFAULT))
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)

    def flat(self) -> dict[str, Any]:
        """Return the value of every key by ``group.key``; of the objective's the ones that it has."""
        values: dict[str, Any] = {}
        for group in dataclasses.fields(self):
            held = getattr(self, group.name)
            names = [key.name for key in dataclasses.fields(held) if key.metadata.get("key", True)]
            if group.name == "objective":
                names.insert(0, "name")
            values |= {f"{group.name}.{name}": getattr(held, name) for name in names}
        return values

    def to_yaml(self) -> str:
        """Return the resolved configuration as YAML that :func:`card_scale.config.load` reads back unchanged."""
        tree: dict[str, dict[str, Any]] = {}
        for dotted, value in self.flat().items():
            group, _, key = dotted.partition(".")
            tree.setdefault(group, {})[key] = list(value) if isinstance(value, tuple) else value
        return strict_yaml.dump(tree)

    def check(self) -> None:
        """Raise ConfigurationError for values that are impossible whatever the world size."""
        checks.check(self)
