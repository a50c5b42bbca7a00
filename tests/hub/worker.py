"""A process that runs our commands against a stand-in Hub, one after the other.

The client reads HF_ENDPOINT and the like when it is imported, and importing takes seconds. Waiting before
the client tries again is noted, not done.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
from types import SimpleNamespace
from typing import Any


def main() -> None:
    """Read a JSON object a line, answer with one."""
    from huggingface_hub.utils import _http

    # What the commands import when they need it takes seconds: at once, while other workers do the same.
    import gptailor_merge.hub.publication
    import gptailor_merge.runs.execution  # noqa: F401
    from gptailor_merge.cli import app as cli

    slept: list[float] = []
    _http.time = SimpleNamespace(**{**vars(time), "sleep": slept.append})  # type: ignore[attr-defined]
    for line in sys.stdin:
        asked = json.loads(line)
        slept.clear()
        before = dict(os.environ)
        os.environ.update({k: v for k, v in asked["environment"].items() if v is not None})
        for name in (k for k, v in asked["environment"].items() if v is None):
            os.environ.pop(name, None)
        out, err, code, value = io.StringIO(), io.StringIO(), 0, None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if asked["kind"] == "code":
                    found: dict[str, Any] = {}
                    exec(asked["code"], found)
                    value = found["result"]
                else:
                    sys.argv = ["gptailor", *asked["arguments"]]
                    (cli.evolve_main if asked["kind"] == "evolve" else cli.main)()
            except SystemExit as ended:
                code = int(ended.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 70
        os.environ.clear()
        os.environ.update(before)
        answer = {"code": code, "out": out.getvalue(), "err": err.getvalue(), "value": value, "slept": slept}
        print(json.dumps(answer), file=sys.__stdout__, flush=True)
    sys.stderr.flush()
    os._exit(0)  # taking the libraries down takes longer than any test


if __name__ == "__main__":
    main()
