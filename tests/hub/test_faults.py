"""Everything that goes wrong between here and the Hub ends in one sentence, and loses nothing."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from tests.hub.conftest import REPO, Done, Worker
from tests.hub.stand_in import TOKEN, Fault, StandIn

AGAIN = "push again: what has arrived is not sent again"


def sentence(done: Done) -> str:
    """Returns the sentence that a failed command ends with."""
    (line,) = [line for line in done.err.splitlines() if line.startswith("Error: ")]
    assert done.err.endswith(f"{line}\n")
    assert "Traceback" not in done.err
    assert TOKEN not in done.err
    return line.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            Fault("POST .*/commit/", 403, message="You don't have the rights"),
            f"the token may not write to {REPO} (it says: You don't have the rights); take one with write "
            "permission for me, or a name of your own, or --create-pr",
        ),
        (
            Fault("POST .*/commit/", 403, message="Private repository storage limit reached"),
            f"the Hub has no room for {REPO} (it says: Private repository storage limit reached); free some or "
            "take a larger plan, and push again",
        ),
        (
            Fault("POST .*/lfs/objects/batch", 413),
            f"the Hub has no room for {REPO}; free some or take a larger plan, and push again",
        ),
        (
            Fault("POST .*/lfs/objects/batch", refuse="You have exceeded your storage"),
            f"{REPO}: LFS batch API returned errors: Encountered error for file with OID OID: `You have "
            f"exceeded your storage; {AGAIN}",
        ),
        (
            Fault("POST .*/preupload/", 404, {"X_Error_Code": "RepoNotFound"}, "Repository not found"),
            f"the Hub has no {REPO}, or no such revision of it, or hides it from this token (it says: "
            "Repository not found)",
        ),
        (
            Fault("POST .*/commit/", 409, message="A conflicting operation is in progress"),
            f"{REPO} was changed by someone else meanwhile (it says: A conflicting operation is in progress); "
            "look at it and push again",
        ),
        (
            Fault("POST /api/repos/create", 409, message="You already created this model repo"),
            f"{REPO} was changed by someone else meanwhile (it says: You already created this model repo); look "
            "at it and push again",
        ),
        (
            Fault("POST .*/commit/", 429, {"Retry_After": "30"}),
            f"the Hub has had too many requests from here; try again in 30 seconds: {AGAIN}",
        ),
        (
            Fault("POST .*/commit/", 500, message="Internal Error - We're working hard to fix this"),
            "the Hub failed with status 500 (it says: Internal Error - We're working hard to fix this); try "
            f"again later: {AGAIN}",
        ),
        (
            Fault("POST .*/commit/", cut=True),
            f"the connection to the Hub failed or was lost (Server disconnected without sending a response); {AGAIN}",
        ),
        (
            Fault("PUT /objects/WEIGHTS", cut=True, times=6),
            f"the connection to the Hub failed or was lost (Server disconnected without sending a response); {AGAIN}",
        ),
        (
            Fault("POST .*/tag/", 403, message="You may not tag"),
            f"the token may not write to {REPO} (it says: You may not tag); take one with write permission for "
            "me, or a name of your own, or --create-pr",
        ),
    ],
    ids=lambda value: value.path if isinstance(value, Fault) else "",
)
def test_a_failed_push_says_what_to_do_and_the_next_one_ends_it(
    hub: StandIn, by_lfs: Worker, run: Path, fault: Fault, expected: str
) -> None:
    weights = (run / "model" / "model.safetensors").read_bytes()
    fault.path = fault.path.replace("WEIGHTS", hashlib.sha256(weights).hexdigest())
    hub.faults.append(fault)
    done = by_lfs("push", run, REPO)
    assert done.code == 1
    found = re.sub("[0-9a-f]{64}", "OID", sentence(done))
    assert found == f"{expected}; nothing is lost, {run / 'hub'} holds it"
    assert (run / "hub" / "model.safetensors").is_file()
    assert fault.times == 0
    arrived = set(hub.objects)
    hub.requests.clear()
    done = by_lfs("push", run, REPO)
    assert done.code == 0, done.err
    assert hub.content(REPO, "model.safetensors") == weights
    assert len(hub.repositories[REPO].tags) == 1
    # What had arrived was not sent again.
    assert not any(hub.asked(f"PUT /objects/{oid}") for oid in arrived)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (
            Fault("GET /api/whoami", 429, {"Retry_After": "300"}),
            f"the Hub has had too many requests from here; try again in 300 seconds: {AGAIN}",
        ),
        (Fault("GET /api/whoami", 503), f"the Hub failed with status 503; try again later: {AGAIN}"),
        (
            Fault("GET /api/whoami", cut=True),
            f"the connection to the Hub failed or was lost (Server disconnected without sending a response); {AGAIN}",
        ),
        (
            Fault("GET .*/auth-check/write", 403, message="Forbidden"),
            f"the token may not write to {REPO} (it says: Forbidden); take one with write permission for me, or "
            "a name of your own, or --create-pr",
        ),
    ],
    ids=lambda value: f"{value.path} {value.status}" if isinstance(value, Fault) else "",
)
def test_what_fails_before_anything_is_written(
    hub: StandIn, by_lfs: Worker, run: Path, fault: Fault, expected: str
) -> None:
    hub.fill(REPO, {".gitattributes": b""})
    hub.faults.append(fault)
    done = by_lfs("push", run, REPO)
    assert done.code == 1
    assert sentence(done) == expected
    assert not (run / "hub").exists()


def test_a_token_that_is_wrong_or_missing(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    done = by_lfs("push", run, REPO, HF_TOKEN="hf_wrong")
    assert done.code == 1
    assert sentence(done) == (
        f"the Hub does not accept the token for {REPO}; run  hf auth login  or set HF_TOKEN to one that may "
        "write, and check the name"
    )
    done = by_lfs("push", run, REPO, HF_TOKEN=None)
    assert sentence(done) == (
        "there is no token for the Hub; run  hf auth login  or set HF_TOKEN to one that may write"
    )
    assert not hub.repositories


def test_offline(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    switch = "from huggingface_hub import constants; constants.HF_HUB_OFFLINE = {}; result = None"
    by_lfs.run_code(switch.format(True))
    try:
        done = by_lfs("push", run, REPO)
    finally:
        by_lfs.run_code(switch.format(False))
    assert done.code == 1
    assert sentence(done) == (
        "HF_HUB_OFFLINE keeps the Hub from being asked; unset it (--dry-run needs no Hub)"
    )
    assert not hub.requests


def test_short_failures_are_waited_for(hub: StandIn, by_lfs: Worker, run: Path) -> None:
    """The client itself waits, as long as the Hub asks for, or else a moment."""
    hub.faults += [
        Fault("POST .*/preupload/", 429, {"Retry_After": "7"}),
        Fault("POST .*/lfs/objects/batch", 500),
        Fault("PUT /objects/", cut=True),
    ]
    done = by_lfs("push", run, REPO)
    assert done.code == 0, done.err
    assert done.slept == [8.0, 1, 1]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("POST .*/commit/", 500, times=6), "the Hub failed with status 500; try again later: "),
        (Fault("POST .*/commit/", 403, message="No"), f"the token may not write to {REPO} (it says: No); "),
        (
            Fault("GET .*/xet-write-token/", 403, times=20),
            f"the token may not write to {REPO}; take one with ",
        ),
    ],
    ids=lambda value: f"{value.path} {value.status}" if isinstance(value, Fault) else "",
)
def test_failures_by_xet(
    hub: StandIn, by_xet: Worker, run: Path, tmp_path: Path, fault: Fault, expected: str
) -> None:
    hub.xet_store = str(tmp_path / "store")
    hub.faults.append(fault)
    done = by_xet("push", run, REPO)
    assert done.code == 1
    found = sentence(done)
    assert found.startswith(expected)
    assert found.endswith(f"; nothing is lost, {run / 'hub'} holds it")
    hub.faults.clear()
    assert by_xet("push", run, REPO).code == 0
    assert "model.safetensors" in hub.repositories[REPO].main.files
