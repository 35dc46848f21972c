"""Cells resolved to runs: lengths, schedules, ids, and cells that cannot be run."""

import dataclasses

import pytest

from card_scale import config as configs
from card_scale.data.stream import PackedStream
from card_scale.errors import ConfigurationError, DataError
from card_scale.studies.grid import load
from card_scale.studies.spec import specs
from card_scale.training.run_data import open_data
from card_scale.training.steps import total_steps
from tests.studies.conftest import BATCH, LENGTH, SAMPLES


def test_lengths_are_those_of_the_job(write_grid, tmp_path):
    for spec in specs(load(write_grid(epochs=[1, 2.5, 4])), tmp_path):
        data = open_data(spec.config)
        assert spec.samples_per_epoch == data.train.sample_count == SAMPLES
        assert spec.steps == total_steps(spec.config, data.train.sample_count)
        assert spec.tokens == spec.steps * BATCH * LENGTH
        assert spec.corpus.vocabulary_size == data.vocabulary.size
        assert spec.held_out.validation_tokens == data.validation.token_count


@pytest.mark.parametrize("tokens, samples", [(960, 39), (961, 40), (984, 40), (985, 41)])
def test_a_sample_needs_one_token_more_than_its_length(write_grid, tmp_path, dataset, tokens, samples):
    (spec,) = specs(load(write_grid(arms={"ar": {}}, unique_tokens=[tokens], epochs=[0.5], warmup_share=0.0)), tmp_path)
    assert spec.samples_per_epoch == samples == PackedStream(dataset, "train", 1, LENGTH, tokens).sample_count


def test_a_command_line_makes_the_configuration(write_grid, tmp_path):
    for spec in specs(load(write_grid(weight_decay=[0.4], dropout=[0.1], lr=["1e-3"])), tmp_path):
        assert configs.load(spec.base, list(spec.overrides)) == spec.config
        assert spec.config.optimizer.weight_decay == 0.4
        assert spec.config.model.dropout == 0.1
        assert spec.config.optimizer.lr == 1e-3


def test_schedules_follow_the_length_of_each_run(write_grid, tmp_path):
    grid = load(write_grid(warmup_share=0.2, min_lr_share=0.1, evaluations=2, logs_per_epoch=5))
    by_epochs = {spec.cell.epochs: spec for spec in specs(grid, tmp_path)}
    assert [by_epochs[e].config.optimizer.warmup_steps for e in (1, 4)] == [1, 4]
    assert [by_epochs[e].config.train.eval_every for e in (1, 4)] == [3, 10]
    assert all(spec.config.optimizer.min_lr == pytest.approx(3e-4) for spec in by_epochs.values())
    assert all(spec.config.train.log_every == 1 for spec in by_epochs.values())


def test_branches_of_all_arms_and_seeds_share_their_warm_up(write_grid, tmp_path):
    rules = [{"where": {"arm": "card"}, "epochs": [4]}]
    grid = load(write_grid(schedule="wsd-branches", warmup_share=0.4, rules=rules))
    assert {spec.config.optimizer.warmup_steps for spec in specs(grid, tmp_path)} == {2}


def test_ids_name_what_matters(write_grid, tmp_path):
    def ids(**changes):
        return {spec.id for spec in specs(load(write_grid(**changes)), tmp_path / str(len(changes)))}

    plain = ids()
    assert len(plain) == 4
    # Neither other cells, nor where a run lies, nor its layout or its log lines change an id.
    assert plain < ids(epochs=[1, 2, 4])
    assert plain == ids(overrides={"train.micro_batch": 4, "parallel.zero": 2}, logs_per_epoch=2)
    assert plain == ids(weight_decay=[0.1])
    for changes in (
        {"seed": [2]},
        {"weight_decay": [0.2]},
        {"overrides": {"data.validation_samples": 4}},
        {"overrides": {"model.dropout": 0.0, "train.global_batch": 4, "train.micro_batch": 4}},
    ):
        if "overrides" in changes:
            changes["overrides"].pop("model.dropout", None)
        assert not plain & ids(**changes)


def test_ids_follow_the_data(write_grid, tmp_path, dataset):
    import shutil

    from card_scale.data.manifest import Manifest

    plain = {spec.id for spec in specs(load(write_grid()), tmp_path)}
    moved = tmp_path / "moved"
    shutil.copytree(dataset, moved)
    here = load(write_grid(overrides={"data.path": str(moved)}))
    assert {spec.id for spec in specs(here, tmp_path)} == plain
    manifest = Manifest.load(moved)
    changed = dataclasses.replace(manifest, special_ids={**manifest.special_ids, "extra": 1})
    changed.save(moved)
    assert not {spec.id for spec in specs(here, tmp_path)} & plain


def test_u_beyond_the_corpus_is_refused(write_grid, tmp_path, train_tokens):
    with pytest.raises(ConfigurationError, match=f"{train_tokens + 1}, but the train split .* has {train_tokens}"):
        specs(load(write_grid(unique_tokens=[train_tokens + 1])), tmp_path)


@pytest.mark.parametrize("epochs, seen", [(0.5, 1600), (1, 3240), (4, 3240)])
def test_an_epoch_of_whole_batches_is_all_of_the_subset(write_grid, tmp_path, epochs, seen):
    # 405 samples of 8 tokens in batches of 4: an epoch of 101 whole batches leaves out one sample.
    grid = {"overrides": {"model.length": 8, "train.global_batch": 4, "train.micro_batch": 4}}
    (spec,) = specs(
        load(write_grid(**grid, unique_tokens=[405 * 8 + 1], epochs=[epochs], arms={"ar": {"objective.name": "ar"}})),
        tmp_path,
    )
    assert spec.tokens == {0.5: 1600, 1: 404 * 8, 4: 1620 * 8}[epochs]
    assert spec.unique_tokens_seen == seen


def test_subsets_of_which_an_epoch_of_whole_batches_misses_much_are_refused(write_grid, tmp_path):
    grid = load(write_grid(unique_tokens=[(SAMPLES + 3) * LENGTH + 1]))
    message = f"leaves out 3 of them; unique_tokens {SAMPLES * LENGTH + 1} or {(SAMPLES + BATCH) * LENGTH + 1} are"
    with pytest.raises(ConfigurationError, match=message):
        specs(grid, tmp_path)


def test_impossible_cells_are_counted_and_named(write_grid, tmp_path):
    sizes = {"odd": {"model.layers": 1, "model.hidden": 10, "model.heads": 3, "model.ffn": 8}}
    with pytest.raises(ConfigurationError, match=r"4 of 4 cells cannot be run:\n  arm=ar size=odd .*not divisible"):
        specs(load(write_grid(sizes=sizes)), tmp_path)
    with pytest.raises(ConfigurationError, match=r"2 of 4 cells (.|\n)*less than one train.global_batch"):
        specs(load(write_grid(epochs=[0.1, 1])), tmp_path)
    with pytest.raises(ConfigurationError, match=r"unknown key objective\.maskin; did you mean masking"):
        specs(load(write_grid(arms={"x": {"objective.maskin": "uniform"}})), tmp_path)


@pytest.mark.parametrize("epochs", [1e300, 1e308, 2**53 / (SAMPLES * LENGTH) * 1.001])
def test_more_tokens_than_can_be_counted_are_refused(write_grid, tmp_path, epochs):
    with pytest.raises(ConfigurationError, match=r"2 of 4 cells (.|\n)*epochs=.*: data\.epochs .*e\+.* at most 2\^53"):
        specs(load(write_grid(epochs=[1, epochs])), tmp_path)


# An epoch has 40 samples, 5 updates.
@pytest.mark.parametrize("keys", [{"overrides": {"optimizer.warmup_steps": 5}}, {"warmup_share": 0.99}])
def test_a_warm_up_as_long_as_the_run_is_refused(write_grid, tmp_path, keys):
    with pytest.raises(ConfigurationError, match=r"arm=ar size=s .* epochs=1.*warmup_steps is 5, .* has 5 steps"):
        specs(load(write_grid(epochs=[1], **keys)), tmp_path)


def test_a_run_of_one_update_has_its_peak_rate(write_grid, tmp_path):
    (spec,) = specs(load(write_grid(arms={"ar": {}}, epochs=[0.2], warmup_share=0.05)), tmp_path)
    assert (spec.steps, spec.config.optimizer.warmup_steps) == (1, 1)


def test_two_names_for_one_run_are_refused(write_grid, tmp_path):
    arms = {"card": {"objective.name": "card"}, "again": {"objective.name": "card", "objective.decay": 0.5}}
    with pytest.raises(ConfigurationError, match=r"one and the same run: arm=again .* and arm=card"):
        specs(load(write_grid(arms=arms)), tmp_path)


def test_size_and_arm_must_not_set_one_key(write_grid, tmp_path):
    arms = {"ar": {"objective.name": "ar", "model.layers": 2}}
    with pytest.raises(ConfigurationError, match=r"both set model\.layers"):
        specs(load(write_grid(arms=arms)), tmp_path)


def test_a_trunk_cannot_follow_evaluations(write_grid, tmp_path):
    arms = {"bd3lm": {"objective.name": "bd3lm", "objective.block": 4, "objective.search_interval": True}}
    with pytest.raises(ConfigurationError, match="search_interval"):
        specs(load(write_grid(arms=arms, schedule="wsd-branches")), tmp_path)


def test_a_corpus_may_be_stated_before_it_is_built(write_grid, tmp_path):
    absent = {"data.path": str(tmp_path / "none")}
    with pytest.raises(DataError, match="no such file"):
        specs(load(write_grid(overrides=absent)), tmp_path)
    stated = {"vocabulary_size": 50000, "train_tokens": 10**9, "validation_tokens": 10**6}
    found = specs(load(write_grid(overrides=absent, corpus=stated)), tmp_path)
    assert not any(spec.corpus.exists for spec in found)
    assert {spec.samples_per_epoch for spec in found} == {SAMPLES}
    # Where the dataset exists, it counts.
    assert all(spec.corpus.exists for spec in specs(load(write_grid(corpus=stated)), tmp_path))


def test_an_id_tells_the_epochs_but_for_runs_that_stand_under_an_earlier_name(write_grid, tmp_path):
    grid = load(write_grid(arms={"ar": {"objective.name": "ar"}}, epochs=[1, 4]))
    first, second = specs(grid, tmp_path)
    assert [spec.id.rpartition("-")[0] for spec in (first, second)] == ["ar-s-1ep", "ar-s-4ep"]
    earlier = first.id.replace("-1ep", "")
    (tmp_path / "runs" / earlier).mkdir(parents=True)
    assert [spec.id for spec in specs(grid, tmp_path)] == [earlier, second.id]


def test_no_pass_is_without_a_log_line(write_grid, tmp_path):
    """A pass is five updates: of lines every 100 updates most passes would have none."""
    wide = {"train.log_every": 100}
    assert {spec.config.train.log_every for spec in specs(load(write_grid(overrides=wide)), tmp_path)} == {5}
    at_the_end = {"train.log_every": 0}
    assert {spec.config.train.log_every for spec in specs(load(write_grid(overrides=at_the_end)), tmp_path)} == {5}
    fine = {"train.log_every": 2}
    assert {spec.config.train.log_every for spec in specs(load(write_grid(overrides=fine)), tmp_path)} == {2}
