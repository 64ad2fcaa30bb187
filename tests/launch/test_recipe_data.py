"""The recipe's kinds and the data pipes' kinds are the same, with the same keys."""

from dataclasses import fields
from inspect import signature
from typing import get_args

import pytest

from data_pipes.clean import RULES, parse_rules
from data_pipes.duplication.near import NearDuplicates
from data_pipes.normalize import parse_normalizers
from data_pipes.reading.intake import Intake
from data_pipes.reading.kinds import KINDS, parse_source
from launch import recipe_clean, recipe_data
from launch.corpus import describe_source


def kinds_of(union):
    models = get_args(get_args(union)[0])
    return {get_args(model.model_fields["kind"].annotation)[0]: model for model in models}


def test_every_kind_of_source_is_in_both():
    assert set(kinds_of(recipe_data.Source)) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_source_of_the_recipe_has_every_key_of_the_pipes(kind):
    model = kinds_of(recipe_data.Source)[kind]
    renamed = {"name": "package", "key": "list_key"} if kind == "package" else {}
    wanted = {renamed.get(item.name, item.name) for item in fields(KINDS[kind])}
    assert set(model.model_fields) - {"licence"} == wanted


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"package"}))
def test_a_source_of_the_recipe_is_read_with_its_defaults(kind):
    source = kinds_of(recipe_data.Source)[kind](kind=kind, path="corpus")
    assert parse_source(describe_source(source)) == KINDS[kind](path="corpus")


def test_every_cleaning_rule_is_in_both_with_the_same_arguments():
    models = kinds_of(recipe_clean.CleanRule)
    assert set(models) == set(RULES)
    for kind, model in models.items():
        assert set(model.model_fields) - {"kind"} == set(signature(RULES[kind]).parameters), kind


@pytest.mark.parametrize("kind", sorted(kinds_of(recipe_clean.Normalizer)))
def test_every_normaliser_of_the_recipe_is_known(kind):
    arguments = {"file": "chronostratigraphy"} if kind == "terms" else {}
    model = kinds_of(recipe_clean.Normalizer)[kind](kind=kind, **arguments)
    assert len(parse_normalizers([model.model_dump(exclude_none=True)])) == 1


def test_plain_sections_fit_what_they_are_handed_to():
    Intake(**recipe_data.BadInput().model_dump())
    NearDuplicates(**recipe_data.NearDuplicates().model_dump())


def test_defaults_of_cleaning_rules_agree():
    for kind, model in kinds_of(recipe_clean.CleanRule).items():
        for name, parameter in signature(RULES[kind]).parameters.items():
            default = model.model_fields[name].default
            if parameter.default is not parameter.empty and not model.model_fields[name].is_required():
                assert default == parameter.default, (kind, name)
    assert len(parse_rules(["strip"])) == 1
