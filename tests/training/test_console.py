"""What a person reads while a run trains."""

import re

from card_scale.training.console import evaluation_line, training_line

RECORD = {
    "step": 10,
    "samples": 80,
    "epoch": 0.03125,
    "step_seconds": 0.1234,
    "tokens_per_second": 16596.4,
    "lr": 3e-4,
    "global_batch": 8,
    "loss": 9.87,
    "loss_interval": 4.1234,
    "grad_norm": 0.5,
}
EXACT = {"step": 100, "samples": 800, "validation_nll": 4.66789, "validation_perplexity": 106.4739}
BOUND = EXACT | {"bound": True, "validation_nll_standard_error": 0.01234}


def line(record=RECORD, **more):
    return training_line(record, **{"total_steps": 100, "is_bound": False, "seconds_left": 95.2, **more})


def test_a_line_says_the_mean_loss_and_how_long_it_takes():
    assert line() == (
        "step  10/100 | loss 4.123 | 16,596 tokens/s | epoch 0.031 | grad norm 0.500 | lr 3.00e-04 | ETA 1 min 35 s"
    )


def test_a_gpu_adds_its_speed():
    found = line(RECORD | {"tflops_per_device": 412.34, "mfu_causal": 0.4167, "mfu_full": 0.5})
    assert "| 16,596 tokens/s | 412.3 TFLOP/s/GPU | MFU 41.7% | epoch" in found
    assert "tokens/s | 61.2 GiB | epoch" in line(RECORD | {"memory/peak_gib": 61.23})


def test_bounds_are_marked_and_exact_losses_are_not():
    assert "| loss <= 4.123 (bound) |" in line(is_bound=True)
    assert evaluation_line(EXACT, total_steps=200, seconds=7.4) == (
        "step 100/200 | validation loss 4.668 | perplexity 106.47 | took 7 s"
    )
    others = {"train_nll": 4.5, "ema/validation_nll": 4.4}
    found = evaluation_line(BOUND | others, total_steps=200, seconds=77)
    assert found == (
        "step 100/200 | validation loss <= 4.668 ± 0.012 (bound) | perplexity <= 106.47 (bound) | "
        "training samples <= 4.500 (bound) | averaged weights <= 4.400 (bound) | took 1 min 17 s"
    )
    # No number of a bound stands without its mark.
    assert len(re.findall(r"<= [\d.]+", found)) == found.count("(bound)") == 4


def test_updates_that_were_not_applied_are_told_of_and_no_loss_is_made_up():
    refused = {key: value for key, value in RECORD.items() if key not in ("loss", "loss_interval", "grad_norm")}
    found = line(refused, refused=3, not_finite=1)
    assert "loss" not in found
    assert found.endswith("| 3 updates not applied, 1 of them not finite")
    assert "not applied" not in line()
