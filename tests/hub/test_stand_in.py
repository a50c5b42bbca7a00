"""The stand-in can be started by hand, to rehearse publishing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from urllib.request import Request, urlopen

from tests.hub.conftest import ROOT


def test_it_prints_what_a_shell_needs_and_answers() -> None:
    command = [sys.executable, "-m", "tests.hub.stand_in"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        exported = re.fullmatch(
            r"export HF_ENDPOINT=(\S+) HF_TOKEN=(\S+) HF_HUB_DISABLE_XET=1\n", process.stdout.readline()
        )
        assert exported is not None
        request = Request(f"{exported[1]}/api/whoami-v2", headers={"Authorization": f"Bearer {exported[2]}"})
        with urlopen(request, timeout=10) as answer:
            assert json.load(answer)["name"] == "me"
        process.terminate()
