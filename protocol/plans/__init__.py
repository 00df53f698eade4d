"""Ways of learning: one file each, with its settings and what vehicle and cloud say for it alone.

A file of this folder that declares a `Way` is found by itself: its section is a key of every scenario and of
the cloud's settings, and where it is a `Plan`, a turn can carry it. The settings that all ways share
(`coding`, `adaptation`, `first_order`) are sections, too, which `Turn` and the run's settings name.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Union

import msgspec

from protocol.plans import checks
from protocol.plans.checks import EstimatorPlan, Plan, Section, Way


def _declared() -> Iterator[type[Way]]:
    """The ways that the files of this folder declare, by the files' names."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Way) and module is not checks:
                yield value


_WAYS = tuple(_declared())
WAYS = {way.section: way for way in _WAYS if way.section}
"""By section."""
PLANS = {section: way for section, way in WAYS.items() if issubclass(way, Plan)}
"""By section: what a turn may carry; it may carry an `OwnPlan`, too, which has no section."""
ESTIMATORS = {plan.estimator: plan for plan in PLANS.values() if issubclass(plan, EstimatorPlan)}
"""By what `zeroth_order.estimator` calls them."""

if TYPE_CHECKING:
    Learner = Plan

    class Ways(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """A section for each way."""
else:
    Learner = Union[tuple(way for way in _WAYS if issubclass(way, Plan))]  # noqa: UP007  # there is no other way to spell it
    Ways = msgspec.defstruct(
        "Ways",
        [(section, way, way()) for section, way in WAYS.items()],
        bases=(Section,),
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        module=__name__,
    )
