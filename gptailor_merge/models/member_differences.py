"""Puts into sentences how a member differs from the base, where that is sound, and what the result takes."""

from __future__ import annotations

from gptailor_merge.models.config_settings import differing_settings, in_short
from gptailor_merge.models.member import Member
from gptailor_merge.models.vocabulary import token_differences


def settings_warning(base: Member, member: Member) -> str | None:
    """Returns a sentence about the settings that a member was trained with and the base was not, or None."""
    differing = differing_settings(base.config, member.config)
    if not differing:
        return None
    listed = ", ".join(
        f"{ascii(key)[1:-1]} {in_short(theirs)} instead of {in_short(ours)}"
        for key, (ours, theirs) in differing.items()
    )
    name = member.name
    return f"{name} was trained with {listed}; the result has the base's, also for layers of {name}"


def head_warning(base: Member, member: Member) -> str | None:
    """Returns a sentence about a head that is tied in only one of a member and the base, or None."""
    if base.tied == member.tied:
        return None
    if base.tied:
        return (
            f"{member.name} has a head of its own (tie_word_embeddings is False), and the base's head is its "
            f"embedding matrix; the result is like the base and takes only layers from {member.name}"
        )
    return (
        f"the head of {member.name} is its embedding matrix (tie_word_embeddings), and the base has one "
        f"of its own; the result is like the base and takes no head from {member.name}"
    )


def token_warning(donor: Member, member: Member) -> str | None:
    """Returns a sentence about the tokens of a member that are not those of the result, or None.

    Args:
        donor: the member that gives the result's tokenizer.
    """
    if donor.tokens is None:
        return None
    if member.tokens is None:
        return (
            f"{member.name} has no tokenizer that can be read, so its tokens are not compared; the result "
            f"has those of {donor.name}"
        )
    differences = token_differences(donor.tokens, member.tokens)
    if differences is None:
        return None
    text = f"{member.name} has other tokens than {donor.name}, whose tokenizer the result has: {differences}"
    consequence = f"; scores of {member.name} on texts are of the tokens of {donor.name}"
    return text + (consequence if differences.ids else "")


def outer_problem(base: Member, member: Member, donor: Member, *, of_head: bool) -> str | None:
    """Returns why a member cannot give embeddings and head, or None if it can.

    Args:
        donor: the member that gives the result's tokenizer.
        of_head: False asks for the embeddings alone.
    """
    if member.vocabulary_size != donor.vocabulary_size:
        return (
            f"{member.model} has a vocabulary of {member.vocabulary_size}, and {donor.model}, whose "
            f"tokenizer the model gets, one of {donor.vocabulary_size}; embeddings, head and "
            "tokenizer must come from members with vocabularies of one size"
        )
    if base.tied and not member.tied:
        return (
            f"{member.model} has a head of its own (tie_word_embeddings is False), and this family's head is "
            "its embedding matrix; take embeddings and head from a member that is like the base"
        )
    if of_head and member.tied and not base.tied:
        return (
            f"the head of {member.model} is its embedding matrix (tie_word_embeddings), and this family's is "
            "not; take the head from a member that has its own"
        )
    if donor.tokens is None or member.tokens is None:
        return None
    differences = token_differences(donor.tokens, member.tokens)
    if differences is None or not differences.ids:
        return None
    return (
        f"{member.model} has other tokens than {donor.model}, whose tokenizer the model gets: {differences}; "
        "embeddings, head and tokenizer must come from members with the same tokens"
    )
