"""Conditions as KEP-1623 lays them down."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from tidegate.api.base import Type

Truth = Literal["True", "False", "Unknown"]


class Condition(Type):
    """One observation about an object: whether it holds, since when, and why."""

    type: Annotated[str, Field(description="What is observed.", max_length=63)]
    status: Annotated[Truth, Field(description="Whether it holds: True, False or Unknown.")]
    reason: Annotated[str, Field(description="Why, in one CamelCase word, for programs.", max_length=128)]
    message: Annotated[str, Field(description="Why, and what to do about it, for people.", max_length=4096)]
    observed_generation: Annotated[int, Field(description="The generation of the spec that this was observed for.")]
    last_transition_time: Annotated[datetime, Field(description="When status last changed.")]


def carry_times(new: Iterable[Condition], old: Iterable[Condition]) -> list[Condition]:
    """The new conditions, each keeping the transition time of the old one of its type unless its status flipped."""
    before = {condition.type: condition for condition in old}
    return [
        condition.model_copy(update={"last_transition_time": past.last_transition_time})
        if (past := before.get(condition.type)) and past.status == condition.status
        else condition
        for condition in new
    ]
