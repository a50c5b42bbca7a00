"""Renders conversations by a model's chat template, in a child process with limits of time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from gptailor_merge.errors import FamilyError
from gptailor_merge.models.rendering_child import SECONDS

WAIT = 30.0
"""Seconds that the child may take to start or to answer; it mostly limits itself, see rendering_child."""


LONGEST_ANSWER = 2**28
"""Bytes of the longest line that is read from the child."""


_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "SYSTEMROOT", "LD_LIBRARY_PATH")
"""Environment variables that the child gets; a token is none of them."""


_WORKED_TOO_LONG = -getattr(signal, "SIGPROF", 0)
"""The return code of a child that its timer has ended."""


class ChatRenderer:
    """Renders conversations as `tokenizer.apply_chat_template(…, tokenize=False)` does, always on one day.

    The child starts with the first conversation, and ends with the renderer.

    Args:
        tokenizer: brings the template, and the special tokens that it may name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child."""
        if self._end is not None:
            self._end()
        self._process = None

    def render(self, messages: Sequence[Any], **options: Any) -> str:
        """Returns the text of a conversation.

        Args:
            messages: mappings with `role` and `content`.
            options: those of apply_chat_template that the template is to know.

        Raises:
            FamilyError: there is no template, it refuses the conversation, or it exceeds the limits.
        """
        if self._process is None:
            self._process = self._start()
        plain = [
            {key: value for key, value in message.items() if value is not None}
            if isinstance(message, Mapping)
            else message
            for message in messages
        ]
        answer = self._ask({"messages": plain, "options": options})
        if "error" in answer:
            raise FamilyError(f"the chat template cannot be rendered: {answer['error']}")
        return str(answer["text"])

    def _start(self) -> subprocess.Popen[bytes]:
        """Starts the child and hands it the template."""
        if not self._tokenizer.chat_template:
            raise FamilyError("the tokenizer has no chat template; expected a model with one, or plain texts")
        try:
            template = self._tokenizer.get_chat_template()
        except ValueError:
            raise FamilyError("the tokenizer has several chat templates, and none is the default") from None
        program = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            "from gptailor_merge.models.rendering_child import main; main()"
        )
        environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )
        self._end = weakref.finalize(self, _stop, self._process)
        variables = dict(self._tokenizer.special_tokens_map)
        self._ask({"template": template, "variables": variables})
        return self._process

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request and returns the answer; a child that does not answer is ended.

        Raises:
            FamilyError: it exceeded the limits.
        """
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        clock = threading.Timer(WAIT, process.kill)
        clock.start()
        try:
            process.stdin.write(json.dumps(request, default=str).encode() + b"\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline(LONGEST_ANSWER))
        except (OSError, ValueError):
            in_time = clock.is_alive()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it has closed its pipe, and is ending
                process.wait(1)
            self.close()
            too_slow = not in_time or process.returncode == _WORKED_TOO_LONG
            limit = f"does not end within {SECONDS:g} s" if too_slow else "takes too much memory"
            raise FamilyError(f"the chat template {limit}") from None
        finally:
            clock.cancel()
        return dict(answer)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a child and closes its pipes."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was left to write has no reader
                pipe.close()
    process.wait()
