"""The step around the official code's model, which a stand-in of the same interface takes the place of."""

import math
import subprocess
import sys

import pytest
import torch

from card_scale.benchmark.official_bd3lm import OfficialStep
from card_scale.errors import ConfigurationError, ExitCode
from tests.launchers.processes import REPOSITORY
from tests.layouts.trajectory import small_config
from tests.objectives.samples import samples_of

STAND_IN = '''
import torch
class DIT(torch.nn.Module):
    """Answers each noisy token, and the clean one at its place, by rows of logits."""
    def __init__(self, config, vocab_size):
        super().__init__()
        self.n = config["model"]["length"]
        self.logits = torch.nn.Parameter(torch.zeros(2, vocab_size, vocab_size))
        self.block_diff_mask = torch.ones(2 * self.n, 2 * self.n, dtype=torch.bool)
    def forward(self, indices, sigma):
        assert indices.shape[1] == 2 * self.n and sigma.shape == indices.shape[:1] and not sigma.any()
        assert self.block_diff_mask.device == self.logits.device
        return self.logits[0][indices[:, : self.n]] + self.logits[1][indices[:, self.n :]]
'''
ROWS = 256


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clone")
    (folder / "models").mkdir()
    (folder / "models" / "dit.py").write_text(STAND_IN)
    return folder


def config_of(micro_batch=4, **objective):
    sizes = {"name": "bd3lm", "block": 4, **objective}
    return small_config(objective=sizes, train={"micro_batch": micro_batch, "global_batch": 4}, parallel={"zero": 0})


def samples_for(config):
    generator = torch.Generator().manual_seed(0)
    return samples_of(torch.randint(5, 250, (4, config.model.length + 1), generator=generator))


def step_of(repository, config):
    return OfficialStep(repository, config, ROWS, "sdpa", torch.device("cpu"))


def test_the_loss_of_equal_logits_is_that_of_guessing_all_but_the_mask(repository):
    config = config_of()
    samples = samples_for(config)
    batch = config.objective.corrupt(samples, config.run.seed)
    guessing = math.log(ROWS - 1) * batch.weights.double().sum() / config.objective.normaliser(batch)
    assert float(step_of(repository, config)(samples)) == pytest.approx(float(guessing), rel=1e-5)


def test_micro_batches_make_the_same_updates(repository):
    whole, parts = (step_of(repository, config_of(size)) for size in (4, 1))
    samples = samples_for(whole.config)
    losses = [[float(step(samples)) for _ in range(5)] for step in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(whole.model.logits, parts.model.logits)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/models/dit.py does not exist; give a clone of"):
        step_of(tmp_path, config_of())
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "dit.py").write_text("import no_such_library")
    with pytest.raises(ConfigurationError, match="No module named 'no_such_library'; pip install it"):
        step_of(tmp_path, config_of())


def test_another_objective_is_refused(repository):
    config = small_config(objective={"name": "card"}, parallel={"zero": 0})
    with pytest.raises(ConfigurationError, match=r"objective\.name is card; the official code is of bd3lm"):
        step_of(repository, config)


def test_the_tool_times_both(repository, tmp_path):
    (tmp_path / "small.yaml").write_text(config_of().to_yaml())
    command = [sys.executable, "tools/bench_official_bd3lm.py", str(repository), str(tmp_path / "small.yaml")]
    command += ["--vocabulary", "250", "--steps", "2", "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == ExitCode.DONE, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["block", "card_scale", "official", "card_scale"]
    assert (tmp_path / "out.json").is_file()
