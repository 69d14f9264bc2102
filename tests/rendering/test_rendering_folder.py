"""Model folders as they are found: new, old and incomplete."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime

import pytest

from agentrl.errors import UserError
from agentrl.rendering.folder import read_folder
from agentrl.rendering.template import TemplateRenderer

from .conftest import SEARCH, user


@pytest.fixture
def folder(folder_of, tmp_path):
    return shutil.copytree(folder_of("qwen3"), tmp_path / "model")


def edit_config(folder, **values):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_an_older_folder_keeps_its_template_in_the_config(folder, renderer_of):
    edit_config(folder, chat_template=(folder / "chat_template.jinja").read_text())
    (folder / "chat_template.jinja").unlink()
    assert TemplateRenderer.from_folder(folder).template_id == renderer_of("qwen3").template_id


def test_named_templates_are_told_apart_by_whether_there_are_tools(folder):
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "plain{{ messages[0].content }}"}, {"name": "tool_use", "template": "tools"}]
    named[1]["template"] += "{% for m in messages %}{{ m.content }}{% endfor %}"
    edit_config(folder, chat_template=named)
    renderer = TemplateRenderer.from_folder.__func__
    with pytest.raises(UserError, match="does not render what an assistant says"):
        renderer(TemplateRenderer, folder)
    named[0]["template"] = "plain{% for m in messages %}{{ m.content }}{% endfor %}"
    edit_config(folder, chat_template=named)
    made = TemplateRenderer.from_folder(folder)
    assert made.text(made.open([user("Hi")])) == "plainHi"
    assert made.text(made.open([user("Hi")], [SEARCH])) == "toolsHi"


def test_tokens_that_only_the_config_declares_are_added(folder):
    size = read_folder(folder).tokenizer.get_vocab_size()
    edit_config(folder, added_tokens_decoder={str(size): {"content": "<new>", "special": True}})
    assert read_folder(folder).tokenizer.token_to_id("<new>") == size
    edit_config(folder, added_tokens_decoder={str(size + 7): {"content": "<new>", "special": True}})
    with pytest.raises(UserError, match="save the tokenizer again"):
        read_folder(folder)


def test_stop_ids_are_the_template_s_end_then_the_folder_s(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [340, 342]}))
    renderer = TemplateRenderer.from_folder(folder)
    assert [renderer.decode([stop]) for stop in renderer.stop_ids] == ["<|im_end|>", "<|endoftext|>"]


def test_a_folder_without_tokenizer_or_template_is_refused_with_the_remedy(folder):
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no default chat template"):
        read_folder(folder)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(UserError, match=r"only tokenizer\.model; write one with"):
        read_folder(folder)


def test_the_clock_of_a_template_can_be_set(folder_of):
    folder = read_folder(folder_of("llama3_2"))
    renderer = TemplateRenderer(folder, clock=lambda: datetime(2025, 1, 31))
    assert "Today Date: 31 Jan 2025" in renderer.text(renderer.open([user("Hi")]))


def test_neither_transformers_nor_torch_is_imported(folder_of):
    code = (
        "import sys; from agentrl.rendering.template import TemplateRenderer; from agentrl.rendering.contract import Message\n"
        f"r = TemplateRenderer.from_folder({str(folder_of('qwen3'))!r}); r.extend(r.open([Message('user', 'Hi')]))\n"
        "raise SystemExit(sum(name in sys.modules for name in ('transformers', 'torch', 'huggingface_hub')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
