"""Tokenizers of the shapes that public models have, trained here on the small corpus of the tests."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.corpora import make_texts

TEXTS = make_texts(60, seed=3)
# As GPT-4's and Llama 3's cut text: contractions, words, up to three digits, punctuation, white space.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _sentencepiece(**options: Any) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=2, vocab_size=400, num_threads=1, **options
    )
    return model.getvalue()


def _llama2_sentencepiece(folder: Path) -> Path:
    """BPE with byte fallback; a space is put before text; no PAD, no mask."""
    path = folder / "tokenizer.model"
    path.write_bytes(
        _sentencepiece(
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            character_coverage=0.99,
            split_digits=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
        )
    )
    return path


def _t5_sentencepiece(folder: Path) -> Path:
    """Unigram with NFKC, white space collapsed, unknown characters; no BOS, no mask."""
    path = folder / "spiece.model"
    path.write_bytes(
        _sentencepiece(
            model_type="unigram",
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            character_coverage=0.99,
        )
    )
    return path


def _albert_sentencepiece(folder: Path) -> Path:
    """Unigram without BOS and EOS, but [CLS], [SEP] and [MASK]."""
    path = folder / "spiece.model"
    path.write_bytes(
        _sentencepiece(
            model_type="unigram",
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=["[CLS]", "[SEP]", "[MASK]"],
            user_defined_symbols=["(", ")"],
        )
    )
    return path


def _gemma_sentencepiece(folder: Path) -> Path:
    """BPE with byte fallback and text kept as it is; symbols of chats that text is matched with, <mask> among them."""
    path = folder / "tokenizer.model"
    path.write_bytes(
        _sentencepiece(
            model_type="bpe",
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            user_defined_symbols=["<mask>", "<start_of_turn>", "\n\n"],
        )
    )
    return path


def _byte_level(pre_tokenizer: Any, names: list[str], **model: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=names,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _gpt2_json(folder: Path) -> Path:
    """Byte-level BPE whose one symbol ends documents and stands in its vocabulary."""
    tokenizer = _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.enable_truncation(16)
    tokenizer.save(str(folder / "tokenizer.json"))
    name = "<|endoftext|>"
    sidecar = {"bos_token": name, "eos_token": name, "unk_token": name, "model_max_length": 1024}
    (folder / "tokenizer_config.json").write_text(json.dumps(sidecar))
    return folder / "tokenizer.json"


def _llama3_json(folder: Path) -> Path:
    """Byte-level BPE cut by a pattern, whole words looked up first; 256 symbols above them, BOS put before."""
    cut = pre_tokenizers.Split(Regex(WORDS), behavior="isolated", invert=False)
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = _byte_level(pre_tokenizers.Sequence([cut, last]), [], ignore_merges=True)
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(253)]
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *reserved])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def _llama2_json(folder: Path) -> Path:
    """BPE with byte fallback whose symbols and bytes stand in its vocabulary."""
    symbols = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=symbols, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = tree["added_tokens"][:3]
    tree["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    names = {"bos_token": {"content": "<s>"}, "eos_token": {"content": "</s>"}, "unk_token": "<unk>", "pad_token": None}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    return folder / "tokenizer.json"


def _bert_json(folder: Path) -> Path:
    """WordPiece in lower case; [SEP] is what comes nearest to an end of document."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    keys = {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
        "pad_token": "[PAD]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(keys))
    return folder / "tokenizer.json"


def _t5_json(folder: Path) -> Path:
    """Unigram, where the library lets every piece of the vocabulary match text, symbols included."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(f"<extra_id_{number}>") for number in range(10)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


SHAPES: dict[str, Callable[[Path], Path]] = {
    "Llama 2, sentencepiece": _llama2_sentencepiece,
    "T5, sentencepiece": _t5_sentencepiece,
    "ALBERT, sentencepiece": _albert_sentencepiece,
    "Gemma, sentencepiece": _gemma_sentencepiece,
    "GPT-2, json": _gpt2_json,
    "Llama 3, json": _llama3_json,
    "Llama 2, json": _llama2_json,
    "BERT, json": _bert_json,
    "T5, json": _t5_json,
}
"""Writes the files of a tokenizer into a folder and returns the one to load."""

KEEPING_TEXT = ("Gemma, sentencepiece", "GPT-2, json", "Llama 3, json")
"""Those that give all text back as it was."""
