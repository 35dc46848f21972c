"""The columns of a result table: one row a training run, csv or parquet.

Only the first four must be there. A column that is not listed may stand beside them: it can be selected by, and is
otherwise ignored.
"""

PARAMETERS = "params_N"
"""Parameters N."""

TOKENS = "tokens_D"
"""Tokens processed D: clean tokens, repetitions counted."""

UNIQUE = "unique_tokens_U"
"""Unique tokens U among them, at most D."""

LOSS = "val_loss"
"""Validation loss in nats per token: exact, or an upper bound where ``bound`` says so."""

REQUIRED = (PARAMETERS, TOKENS, UNIQUE, LOSS)

RUN = "run"
"""Name of the run, unique in the table."""

OBJECTIVE = "objective"
"""What was trained: ar, card, mdlm, bd3lm, ..."""

EPOCHS = "epochs"
"""D / U; checked against it."""

FLOPS = "flops"
"""Training FLOPs as the trainer counted them; 6 N D is taken where the column is missing."""

STATUS = "status"
"""``done``, or why the loss is not that of a finished run: ``failed``, ``truncated``, ``missing``, ..."""

DONE = "done"

BOUND = "bound"
"""Whether ``val_loss`` is an upper bound on the negative log-likelihood (MDLM, BD3-LM): true or false."""

TOKENIZER = "tokenizer_hash"
"""Hash of the tokenizer: losses per token of different tokenizers are different quantities."""

VALIDATION = "validation_hash"
"""Hash of the validation tokens."""

DECONTAMINATED = "decontaminated"
"""Whether the validation documents that stand in train were left out: true or false."""

SEED = "seed"

SETTINGS = ("lr", "weight_decay", "dropout", "regularisation", "reshuffle")
"""Columns of what a cell may be tuned over, as far as the table has them."""

CELL = (OBJECTIVE, PARAMETERS, TOKENS, UNIQUE)
"""A fit takes the runs of one cell as repeats that differ in their seed alone."""

IDENTITY = (*CELL, "size", SEED, *SETTINGS, "note")
"""Columns that tell runs apart, as far as the table has them: two rows equal in all of them are duplicates."""
