"""A chat template is a stranger's program: it renders as transformers does, and within limits."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.chat_renderer import ChatRenderer
from gptailor_merge.models.loading import load_tokenizer

MESSAGES = [{"role": "user", "content": "HI"}, {"role": "assistant", "content": "YO"}]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}{{ eos_token }}"
)


@pytest.fixture
def tokenizer(family: dict[str, str]) -> PreTrainedTokenizerBase:
    return load_tokenizer(Path(family["base"]))


def test_it_renders_as_transformers_does(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = CHATML
    with ChatRenderer(tokenizer) as renderer:
        for options in ({}, {"add_generation_prompt": True}, {"continue_final_message": True}):
            expected = tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options)
            assert renderer.render(MESSAGES, **options) == expected


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "does not end within 1 s",
        ),
        ("{% for a in range(99999) %}{{ 'x' * 10**7 }}{% endfor %}", "it needs too much memory"),
        ({"a": "x", "b": "y"}, "several chat templates, and none is the default"),
    ],
)
def test_a_template_without_end_or_choice_is_a_sentence(
    tokenizer: PreTrainedTokenizerBase, template: str, message: str
) -> None:
    tokenizer.chat_template = template
    begun = time.process_time()
    with ChatRenderer(tokenizer) as renderer, pytest.raises(FamilyError, match=message):
        renderer.render(MESSAGES)
    assert time.process_time() - begun < 0.5  # the work is the child's


PROGRAM = """{% set text = messages[0].content %}
{%- if text == 'DAY' %}{{ strftime_now('%d %b %Y') }}
{%- elif text == 'LONG' %}{{ 'x' * (2**24 + 1) }}
{%- elif text == 'REFUSED' %}{{ raise_exception('roles must alternate') }}
{%- elif text == 'ESCAPE' %}{{ ''.__class__.__mro__ }}
{%- elif text == 'FILE' %}{% include '/etc/passwd' %}
{%- else %}{{ text }}{% endif %}"""


def test_what_a_template_does_is_its_own_affair(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refusal is a sentence, and the child goes on; it knows no token, and ends with its renderer."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    tokenizer.chat_template = PROGRAM
    renderer = ChatRenderer(tokenizer)
    # Every day is the same: else a search that is resumed tomorrow would score on other tokens.
    assert renderer.render([{"content": "DAY"}]) == "26 Jul 2024"
    for text, message in (
        ("LONG", "its text has more than 16,777,216 characters"),
        ("REFUSED", "cannot be rendered: TemplateError: roles must alternate"),
        ("ESCAPE", "SecurityError"),
        ("FILE", "no loader for this environment"),
    ):
        with pytest.raises(FamilyError, match=message):
            renderer.render([{"content": text}])
    assert renderer.render([{"content": "\ud83d half"}]) == "\ud83d half"
    process = renderer._process
    assert process is not None
    assert process.poll() is None
    environment = Path(f"/proc/{process.pid}/environ")
    assert not environment.exists() or b"hf_secret" not in environment.read_bytes()
    del renderer
    assert process.poll() is not None
