"""The description of mergekit's methods says what mergekit says."""

from __future__ import annotations

import pytest
from mergekit.merge_methods import registry

from gptailor_merge.methods.chat_templates import chat_template_names, chat_template_problem
from gptailor_merge.methods.specs import (
    BasePolicy,
    ParameterScope,
    merge_method_problem,
    method_names,
    method_spec,
)


@pytest.mark.parametrize("name", method_names())
def test_every_method_is_described_as_mergekit_describes_it(name: str) -> None:
    spec, theirs = method_spec(name), registry.get(name).spec
    assert spec is not None
    assert [p.name for p in spec.parameters] == [p.name for p in theirs.parameters]
    assert [p.scope.value for p in spec.parameters] == [p.scope.value for p in theirs.parameters]
    assert [p.name for p in spec.parameters if p.required] == [
        p.name for p in theirs.parameters if p.required
    ]
    assert spec.base.value == theirs.contract.base.value
    assert (spec.fewest, spec.most) == (theirs.contract.min_inputs, theirs.contract.max_inputs)
    assert method_spec(name) is spec


def test_no_other_method_has_a_spec() -> None:
    assert method_spec("slrep") is None
    assert method_spec("tailor") is None


def test_slerp_requires_a_base_and_interpolates_its_gradient() -> None:
    spec = method_spec("slerp")
    assert spec is not None
    assert spec.base is BasePolicy.REQUIRED
    assert spec.takes_base
    (t,) = spec.shared_parameters
    assert (t.name, t.scope, t.required) == ("t", ParameterScope.SHARED, True)
    assert t.value_at((0.0, 1.0), 0.25) == 0.25
    assert t.value_at(0.5, 1.0) == 0.5
    assert t.problem("much") is not None
    assert t.problem(0.5) is None


def test_numbers_of_inputs_are_checked_in_mergekits_words() -> None:
    spec = method_spec("model_stock")
    assert spec is not None
    assert spec.input_problem(2, 0) == "model_stock: merge method requires at least 3 inputs; got 2"
    assert spec.input_problem(3, 0) is None


def test_a_merge_needs_the_name_of_a_method_that_merges() -> None:
    assert merge_method_problem(None) == "method is missing; merge takes the name of a mergekit method"
    assert "unknown method, found 'passthrough'" in str(merge_method_problem("passthrough"))
    assert merge_method_problem("linear") is None


def test_chat_templates_are_names_or_jinja() -> None:
    assert chat_template_problem("auto") is None
    assert chat_template_problem(chat_template_names()[0]) is None
    assert chat_template_problem("{% for message in messages %}{% endfor %}") is None
    assert "expected auto, the name of a template of mergekit" in str(chat_template_problem("chatlm"))
