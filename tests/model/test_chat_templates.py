"""Chat templates, wherever a checkpoint has them, reach each target."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import pytest
from gguf import GGUFReader

from emo_export.errors import EmoExportError
from emo_export.inspect.checkpoint import inspect_path
from emo_export.model.chat_templates import chat_templates
from emo_export.runtimes.llama.abi import load_library
from tests.kit.command import Emo
from tests.kit.exporting import export_to
from tests.kit.synth import make_checkpoint

CHAT = "{% for m in messages %}<{{ m.role }}>\n{{ m.content }}{% endfor %}"
TOOLS, RAG = "{{ tools }}ä", "{{ documents }}"
Setting = str | list[dict[str, str]] | None


def with_templates(
    folder: Path, setting: Any = None, single: str | None = None, **more: str
) -> Path:
    """A small checkpoint with a chat_template in its settings, in a file, and named ones."""
    if not folder.exists():
        make_checkpoint(folder, num_hidden_layers=1)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text("utf-8")) | {"chat_template": setting}
    settings.write_text(json.dumps(content), "utf-8")
    if single is not None:
        (folder / "chat_template.jinja").write_text(single, "utf-8")
    for name, text in more.items():
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(text, "utf-8")
    return folder


LISTED = [{"name": "tool_use", "template": TOOLS}, {"name": "default", "template": CHAT}]
PLACES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "none": ({}, {}),
    "setting": ({"setting": CHAT}, {"default": CHAT}),
    "settings": ({"setting": LISTED}, {"default": CHAT, "tool_use": TOOLS}),
    "file": ({"single": "\ufeff" + CHAT}, {"default": CHAT}),
    # As transformers: the settings are not looked at beside the file.
    "file and settings": ({"single": RAG, "setting": LISTED}, {"default": RAG}),
    "files": (
        {"single": CHAT, "tool_use": TOOLS, "rag": RAG},
        {"default": CHAT, "rag": RAG, "tool_use": TOOLS},
    ),
    "setting and files": ({"setting": CHAT, "rag": RAG}, {"default": CHAT, "rag": RAG}),
}


@pytest.mark.parametrize("case", PLACES)
def test_where_templates_are_found(case: str, tmp_path: Path) -> None:
    given, wanted = PLACES[case]
    found = chat_templates(with_templates(tmp_path / "model", **given))
    assert list(found.items()) == list(wanted.items())
    told = inspect_path(tmp_path / "model").facts["tokenizer"]
    assert told["chat_templates"] == list(wanted)


@pytest.mark.parametrize("setting", [7, {"default": CHAT}, [CHAT], [{"name": "x"}]])
def test_what_is_no_template_is_refused(setting: Any, tmp_path: Path) -> None:
    folder = with_templates(tmp_path / "model", setting)
    for target in ({"gguf": ["f32"]}, {"onnx": ["f32"]}):
        with pytest.raises(EmoExportError, match=r"tokenizer_config\.json: chat_template is neith"):
            export_to(tmp_path / "out", folder, **target)
    for name in ("../up", "/tmp/x", "a/b", "", "..", "a\nb", "n" * 300):
        with_templates(folder, [{"name": name, "template": CHAT}])
        with pytest.raises(EmoExportError, match="is no name for a chat template"):
            chat_templates(folder)
    assert "is no name for a chat template" in " ".join(inspect_path(folder).warnings)
    with_templates(folder, CHAT, "")
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(EmoExportError, match=r"chat_template\.jinja is not UTF-8"):
        export_to(tmp_path / "out", folder, onnx=["f32"])


def test_a_gguf_has_every_template(tmp_path: Path) -> None:
    folder = with_templates(tmp_path / "model", None, CHAT, **{"tool-use": TOOLS, "rag": RAG})
    path = export_to(tmp_path / "out", folder, gguf=["f32"])["gguf:f32"]
    fields = {name: field.contents() for name, field in GGUFReader(path).fields.items()}
    assert fields["tokenizer.chat_template"] == CHAT
    assert fields["tokenizer.chat_templates"] == ["rag", "tool_use"]
    # What llama.cpp itself finds by name.
    api = load_library().api
    api.llama_model_chat_template.restype = ctypes.c_char_p
    api.llama_model_chat_template.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    params = api.llama_model_default_params()
    model = api.llama_model_load_from_file(str(path).encode(), params)
    try:
        for name, wanted in ((None, CHAT), (b"tool_use", TOOLS), (b"rag", RAG)):
            assert api.llama_model_chat_template(model, name).decode("utf-8") == wanted
    finally:
        api.llama_model_free(model)
    with_templates(folder, None, CHAT, tool_use=RAG)
    with pytest.raises(EmoExportError, match="two chat templates would have the name 'tool_use'"):
        export_to(tmp_path / "twice", folder, gguf=["f32"])


@pytest.mark.parametrize("case", PLACES)
def test_an_onnx_folder_has_every_template(case: str, tmp_path: Path) -> None:
    given, wanted = PLACES[case]
    folder = with_templates(tmp_path / "model", **given)
    made = export_to(tmp_path / "out", folder, onnx=["int4"])["onnx:int4"]
    assert chat_templates(made) == wanted
    # transformers.js and transformers before 4.50 look here alone.
    settings = json.loads((made / "tokenizer_config.json").read_text("utf-8"))
    assert settings.get("chat_template") == wanted.get("default")
    tokenizer = og.Tokenizer(og.Model(str(made)))  # a null or a list in the settings stops it
    if wanted.get("default") == CHAT:
        messages = json.dumps([{"role": "user", "content": "hi"}])
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=False) == "<user>\nhi"


@pytest.mark.parametrize("case", ["none", "setting", "file", "files"])
def test_ollama_is_told_of_no_template_only_where_there_is_none(
    case: str, tmp_path: Path, emo: Emo
) -> None:
    folder = with_templates(tmp_path / "model", **PLACES[case][0])
    done = emo("export", folder, "-o", tmp_path / "out", "--to", "gguf:f32", "--no-golden")
    assert done.code == 0, done.err
    text = (tmp_path / "out" / "model-F32.Modelfile").read_text("utf-8")
    assert ("TEMPLATE" in text) == (case == "none")
