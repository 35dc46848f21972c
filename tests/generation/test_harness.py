"""lm-evaluation-harness on a checkpoint, against the harness's own model on the exported folder."""

import json
import os

import lm_eval
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer, LlamaForCausalLM

from card_scale.data.tokenizer import EOS_ID, MASK_ID
from card_scale.generation import load
from card_scale.generation.harness import HarnessModel
from card_scale.generation.hugging_face.export import export
from tests.generation.conftest import TINY, make_model, whole_model_weights, write_checkpoint

QUESTIONS = [
    {"question": "def print", "choices": [" return", " self value", "mask"], "answer": 0, "text": "for x in noise"},
    {"question": "import token", "choices": ["\n", " class", "    while"], "answer": 1, "text": "class index " * 30},
    {"question": "class", "choices": [" value", " def"], "answer": 1, "text": "while print: return 12\n\t漢"},
]
TASKS = {
    "local_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "local_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "local_until": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["e"], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Task files on local data: nothing is downloaded."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "data.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, task in TASKS.items():
        common = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}},
            "test_split": "test",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(common | task))
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    return TaskManager(include_path=str(folder), include_defaults=False)


class WithoutMask(LlamaForCausalLM):
    """The exported model, [MASK] as impossible as it is in training."""

    def forward(self, *arguments, **keywords):
        result = super().forward(*arguments, **keywords)
        result.logits[..., MASK_ID] = -torch.inf
        return result


class BehindAnEnd(HFLM):
    """The harness's model; texts stand behind the end of another, as they do in training."""

    rolling = False

    def tok_encode(self, string, add_special_tokens=None, **rest):
        ids = super().tok_encode(string, add_special_tokens=False, **rest)
        return ids if self.rolling or add_special_tokens is False else [EOS_ID, *ids]

    def loglikelihood_rolling(self, *arguments, **keywords):
        # Here the harness puts the end itself.
        self.rolling = True
        try:
            return super().loglikelihood_rolling(*arguments, **keywords)
        finally:
            self.rolling = False


def answers(model, tasks):
    found = lm_eval.simple_evaluate(model=model, tasks=list(TASKS), task_manager=tasks, bootstrap_iters=0)
    values = {
        (task, name): value
        for task, row in found["results"].items()
        for name, value in row.items()
        if isinstance(value, float)
    }
    responses = {
        (task, number): sample["filtered_resps"]
        for task, samples in found["samples"].items()
        for number, sample in enumerate(samples)
    }
    return values, responses


def test_the_harness_says_what_it_says_of_the_exported_folder(checkpoint, tmp_path, tasks):
    export(checkpoint, tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    tokenizer.bos_token = tokenizer.eos_token
    theirs = BehindAnEnd(
        pretrained=WithoutMask.from_pretrained(tmp_path / "folder"),
        tokenizer=tokenizer,
        batch_size=1,
        max_length=48,
        backend="causal",
    )
    values, responses = answers(HarnessModel(load(checkpoint), batch_size=2), tasks)
    expected, expected_responses = answers(theirs, tasks)
    assert {task for task, _ in values} == set(TASKS)
    assert values == pytest.approx(expected, rel=1e-5)
    for place in (place for place in responses if place[0] == "local_choice"):
        logs, greedy = zip(*responses[place], strict=True)
        their_logs, their_greedy = zip(*expected_responses[place], strict=True)
        assert logs == pytest.approx(their_logs, rel=1e-5)
        assert greedy == their_greedy


def test_bounds_are_called_bounds(tmp_path, tokenizer_path, tasks):
    sizes = {"rows": 448, "vocabulary": 400, "rotary_base": 1e4, "tied": True, "dtype": torch.float32}
    weights = {name: weight.float() for name, weight in whole_model_weights(make_model(3.0, **sizes)).items()}
    path = write_checkpoint(tmp_path / "c", tokenizer_path, weights, *TINY, "objective.name=mdlm")
    model = HarnessModel(str(path), draws=4)
    assert model.get_model_info()["likelihood"].startswith("bound from 4 draws")
    assert (model.method, model.eot_token_id) == ("mdlm", EOS_ID)
    values, _ = answers(model, tasks)
    assert values["local_rolling", "bits_per_byte,none"] > 0
    assert HarnessModel.__name__ == "HarnessModel"
