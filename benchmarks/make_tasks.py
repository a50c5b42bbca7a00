"""Make the items of the built-in family's tasks.

    python benchmarks/make_tasks.py DATA_DIR recipes/demo/tasks [--tiny]

DATA_DIR holds text/{stories,encyclopedia,maths,code}.jsonl, which the family was trained on but for
recipes/demo/calibration and recipes/demo/held-out, and items/blimp_*.jsonl. TASKS_DIR receives
validation/*.jsonl, made from the calibration texts, and test/*.jsonl, from the held-out texts.

An item is a passage, the words that follow it in its document, and three runs of words that follow
other passages of its domain: of those from other documents, some that are about as likely by the
frequency of their words alone. Without that, the rarity of single words would drown what a model
makes of the passage. BLiMP's pairs are copied and divided by a hash of the pair. With --tiny a few items of
each kind are made.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from common import Tiny
from train_family import DOMAINS, split
from train_family import SEED as FAMILY_SEED

SEED = 20251125
TEXTS = {"validation": "calibration", "test": "held-out"}
LENGTHS = {"stories": 20, "encyclopedia": 6, "maths": 20, "code": 20}
"""Characters that an option has at least. The family's models make little of encyclopedia articles:
on their longer options they choose hardly better than chance."""
CONTEXT = 120  # characters of a passage, at most
ITEMS = 300  # of a domain and split
NEAREST = 20  # options are drawn from this many that are about as likely
FAMILIAR = 60  # characters of a passage that, with what follows, must not be in a text of another part

PARADIGMS = ("drop_argument", "left_branch_island_echo_question", "superlative_quantifiers_2")
"""Paradigms of BLiMP, of 16 in DATA_DIR, whose validation pairs each member gets right in 60 % or more."""

WORD = re.compile(r"\w+|[^\w\s]")
START = re.compile(r"\s+(?=\S)")
END = re.compile(r"(?<=\S)(?=\s|$)")


class Passage(NamedTuple):
    """Words of a document, and those that follow with the space before them."""

    document: int
    context: str
    continuation: str


def passages(texts: Sequence[str], length: int) -> Iterator[Passage]:
    """Cuts documents; no two continuations overlap, and each context is at least half of CONTEXT long."""
    for number, text in enumerate(texts):
        free = CONTEXT // 2
        for gap in START.finditer(text):
            end = END.search(text, gap.start() + length)
            if gap.start() < free or end is None:
                continue
            begin = max(0, gap.start() - CONTEXT)
            if begin:  # at a word, not inside one
                begin = next(START.finditer(text, begin)).end()
            if begin < gap.start():
                yield Passage(number, text[begin : gap.start()], text[gap.start() : end.start()])
                free = end.start()


def word_likelihood(texts: Sequence[str]) -> Callable[[str], float]:
    """Returns the log-likelihood of a text as a bag of words, in nats; unseen words count as half seen."""
    seen = Counter(word for text in texts for word in WORD.findall(text))
    total = sum(seen.values())
    return lambda text: sum(math.log((seen[word] or 0.5) / total) for word in WORD.findall(text))


def choices(
    texts: Sequence[str],
    training: Sequence[str],
    others: Sequence[str],
    length: int,
    rng: random.Random,
    count: int = ITEMS,
) -> list[dict[str, Any]]:
    """Makes items of one domain and split, with the right answers evenly at each place.

    Args:
        others: texts of the other split.
        count: number of items.
    """
    likelihood = word_likelihood(training)
    known = even("\n".join([*training, *others]))
    pool = list(passages(texts, length))
    rated = [(likelihood(passage.continuation), passage) for passage in pool]
    items: list[dict[str, Any]] = []
    for rate, passage in rng.sample(rated, len(rated)):
        if even(passage.context[-FAMILIAR:] + passage.continuation) in known:
            continue
        wrong = alternatives(rate, passage, rated, rng)
        label = len(items) % 4
        options = [*wrong[:label], passage.continuation, *wrong[label:]]
        items.append({"context": passage.context, "options": options, "label": label})
        if len(items) == count:
            return items
    raise SystemExit(f"{len(items)} items only, expected {count}")


def alternatives(
    rate: float, passage: Passage, rated: Sequence[tuple[float, Passage]], rng: random.Random
) -> list[str]:
    """Draws three distinct continuations of other documents, beginning with the right one's space."""
    words = passage.continuation.lstrip()
    space = passage.continuation.removesuffix(words)
    near: dict[str, None] = {}
    for _, other in sorted(rated, key=lambda rated_passage: abs(rated_passage[0] - rate)):
        option = other.continuation.lstrip()
        if other.document != passage.document and option != words:
            near[option] = None
        if len(near) == NEAREST:
            break
    return [space + option for option in rng.sample(list(near), 3)]


def even(text: str) -> str:
    """Returns a text with its white space evened out."""
    return " ".join(text.split())


def split_of(pair: dict[str, str]) -> str:
    """Returns the split of a minimal pair, which depends on its sentences alone."""
    content = f"{SEED}\n{pair['sentence_good']}\n{pair['sentence_bad']}"
    return "validation" if hashlib.sha256(content.encode()).digest()[0] % 2 else "test"


def read(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
    print(f"{file}: {len(rows)} items")


def main(
    data_dir: Annotated[Path, typer.Argument(help="A directory with text/ and items/.")],
    tasks_dir: Annotated[Path, typer.Argument(help="The directory of the tasks to fill.")],
    tiny: Tiny = False,
) -> None:
    of_family = random.Random(FAMILY_SEED)
    for domain in DOMAINS:
        documents = [row["text"] for row in read(data_dir / "text" / f"{domain}.jsonl")]
        training, *kept_out = split(documents, of_family)
        for (part, folder), texts, others in zip(TEXTS.items(), kept_out, reversed(kept_out), strict=True):
            if texts != [row["text"] for row in read(tasks_dir.parent / folder / f"{domain}.jsonl")]:
                raise SystemExit(f"{folder}/{domain}.jsonl is not what train_family.py keeps out of training")
            rng = random.Random(f"{SEED} {domain} {part}")
            items = choices(texts, training, others, LENGTHS[domain], rng, 4 if tiny else ITEMS)
            write(tasks_dir / part / f"{domain}.jsonl", items)
    for paradigm in PARADIGMS:
        pairs = read(data_dir / "items" / f"blimp_{paradigm}.jsonl")
        kept = [{key: p[key] for key in ("sentence_good", "sentence_bad", "pairID")} for p in pairs]
        for part in TEXTS:
            rows = [pair for pair in kept if split_of(pair) == part]
            write(tasks_dir / part / f"{paradigm}.jsonl", rows)


if __name__ == "__main__":
    typer.run(main)
