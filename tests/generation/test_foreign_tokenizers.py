"""Foreign tokenizers on their way out and in: transformers reads what is exported, a folder's is taken as it is."""

import json

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from card_scale.data.tokenizer import Tokenizer
from card_scale.errors import DataError
from card_scale.generation import generate, load
from card_scale.generation.hugging_face.export import export
from card_scale.generation.hugging_face.importing import NEW, import_folder, take_tokenizer
from card_scale.generation.hugging_face.tokenizer import write_tokenizer
from card_scale.generation.text import prompt_tokens
from tests.foreign_tokenizers import SHAPES, TEXTS

EXPORTED = ("Llama 2, sentencepiece", "Gemma, sentencepiece", "GPT-2, json", "Llama 3, json", "BERT, json", "T5, json")
WORDS = ["def", "return", " ", "  ", "\n", "\t", "\r\n", "12", "7", "\u0301", "\ufb01", "漢", "🧿", "[", "/", ">"]
TEXT = st.lists(st.sampled_from(WORDS) | st.text(max_size=5).filter(lambda text: "\u2581" not in text), max_size=20)


@pytest.fixture(scope="module", params=EXPORTED)
def exported(request, tmp_path_factory):
    """Our tokenizer, what transformers makes of the exported one, and the folder."""
    ours = Tokenizer.load(SHAPES[request.param](tmp_path_factory.mktemp("original")))
    folder = tmp_path_factory.mktemp("exported")
    (folder / ours.file_name).write_bytes(ours.content)
    write_tokenizer(folder / ours.file_name, folder, 48)
    return ours, AutoTokenizer.from_pretrained(folder), folder


@given(text=TEXT.map("".join))
@settings(max_examples=150)
def test_the_exported_tokenizer_encodes_and_decodes_identically(exported, text):
    ours, theirs, _ = exported
    ids = ours.encode(text)
    assert theirs.encode(text) == theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.decode(ids) == ours.decode(ids)


def test_symbols_keep_their_ids(exported):
    ours, theirs, folder = exported
    found = (theirs.pad_token_id, theirs.eos_token_id, theirs.mask_token_id)
    assert found == (ours.pad_id, ours.eos_id, ours.mask_id)
    assert theirs.bos_token_id == ours.eos_id
    if ours.file_name == "tokenizer.json":
        assert (folder / "tokenizer.json").read_bytes() == ours.content


@pytest.mark.parametrize(
    "shape, words", [("T5, sentencepiece", "without a piece for"), ("ALBERT, sentencepiece", "has symbols")]
)
def test_what_the_format_cannot_express_is_refused(tmp_path, shape, words):
    path = SHAPES[shape](tmp_path)
    with pytest.raises(DataError, match=f"^{path}: .*{words}"):
        write_tokenizer(path, tmp_path, 48)


def test_a_folder_with_a_tokenizer_json_comes_in_and_out(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    SHAPES["GPT-2, json"](folder)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    theirs = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=416, max_position_embeddings=64, initializer_range=0.2))
    theirs.save_pretrained(folder)
    import_folder(folder, tmp_path / "iter_0000000")
    ours = load(tmp_path / "iter_0000000")
    tokenizer = ours.tokenizer
    assert (tokenizer.vocabulary_size, tokenizer.eos_id, tokenizer.mask_id) == (402, 0, 401)
    tokens = torch.randint(0, 400, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).logits[..., :400]
    torch.testing.assert_close(ours.logits(tokens)[..., :400], expected, rtol=1e-4, atol=1e-4)
    assert ours.logits(tokens)[..., tokenizer.mask_id].isneginf().all()
    mean = theirs.get_input_embeddings().weight.mean(0)
    torch.testing.assert_close(ours.embedding.weight[400:402], mean.expand(2, -1))

    prompt = prompt_tokens(tokenizer, TEXTS[0][:20])
    assert prompt[0] == 0
    assert generate(ours, [prompt], method="self_verified", new_tokens=5)[0].tokens
    export(tmp_path / "iter_0000000", tmp_path / "exported")
    stated = json.loads((tmp_path / "exported/config.json").read_text())
    assert (stated["eos_token_id"], stated["pad_token_id"], stated["mask_token_id"]) == (0, 400, 401)
    import_folder(tmp_path / "exported", tmp_path / "again")
    assert load(tmp_path / "again").tokenizer.sha256 == tokenizer.sha256


class TestTokensThatWereAdded:
    """A tokenizer.model does not have the tokens that were added to it; their trained rows are not to be lost."""

    CHAT = ("<|im_end|>", "<|im_start|>")

    def write(self, folder, *, whole, listed):
        SHAPES["Llama 2, sentencepiece"](folder)
        if whole:
            path = SHAPES["Llama 2, json"](folder)
            theirs = tokenizers.Tokenizer.from_file(str(path))
            theirs.add_special_tokens(list(self.CHAT))
            theirs.save(str(path))
        if listed:
            (folder / "added_tokens.json").write_text(json.dumps({name: 400 + i for i, name in enumerate(self.CHAT)}))
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')

    @pytest.mark.parametrize("listed", [True, False])
    def test_the_file_that_has_them_is_taken(self, tmp_path, listed):
        self.write(tmp_path, whole=True, listed=listed)
        tokenizer, rows = take_tokenizer(tmp_path, 402)
        assert [tokenizer.piece(token) for token in (400, 401)] == list(self.CHAT)
        assert tokenizer.eos_id == 400
        assert rows[:402] == list(range(402))
        assert {rows[token] for token in (tokenizer.pad_id, tokenizer.mask_id)} == {NEW}

    def test_without_such_a_file_the_folder_is_refused(self, tmp_path):
        self.write(tmp_path, whole=False, listed=True)
        with pytest.raises(DataError, match=r"'<\|im_end\|>' was added to the tokenizer as id 400, .* tokenizer.json"):
            take_tokenizer(tmp_path, 402)

    def test_newer_folders_list_them_in_the_configuration(self, tmp_path):
        self.write(tmp_path, whole=False, listed=False)
        listed = {"2": {"content": "</s>"}, "400": {"content": "<|im_end|>"}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
        with pytest.raises(DataError, match=r"'<\|im_end\|>' was added to the tokenizer as id 400"):
            take_tokenizer(tmp_path, 402)

    def test_where_none_were_added_the_model_file_is_taken(self, tmp_path):
        SHAPES["Llama 2, sentencepiece"](tmp_path)
        SHAPES["Llama 2, json"](tmp_path)
        assert take_tokenizer(tmp_path, 400)[0].file_name == "tokenizer.model"
