"""The table of policies: a new one is one file here and one line in `POLICIES`."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable

from aegis_pipe.errors import PermanentError
from aegis_pipe.scheduling.policies.edf import EdfPolicy
from aegis_pipe.scheduling.policies.fairness import FairnessPolicy
from aegis_pipe.scheduling.policies.fifo import FifoPolicy
from aegis_pipe.scheduling.policies.priority import PriorityPolicy
from aegis_pipe.scheduling.policy import SchedulingPolicy

PolicyFactory = Callable[..., SchedulingPolicy]

POLICIES: dict[str, PolicyFactory] = {
    "fifo": FifoPolicy,
    "priority": PriorityPolicy,
    "fairness": FairnessPolicy,
    "edf": EdfPolicy,
}


def make_policy(name: str, **options: object) -> SchedulingPolicy:
    """Make a policy by its name in `POLICIES`, or by `module:Class` for one of your own.

    Raises PermanentError if there is no such policy, if it does not take these options, or if
    the class is not a `SchedulingPolicy`.
    """
    factory = _load(name) if ":" in name else _look_up(name)
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise _problem(
            name, f"does not take these options: {error}", f"it takes {_options(factory)}"
        ) from error
    policy = factory(**options)
    if not isinstance(policy, SchedulingPolicy):
        raise _problem(
            name,
            f"is not a scheduling policy: it lacks {', '.join(_missing(policy))}",
            "derive from aegis_pipe.scheduling.KeyedPolicy, or add what is missing",
        )
    return policy


def _look_up(name: str) -> PolicyFactory:
    if name in POLICIES:
        return POLICIES[name]
    close = difflib.get_close_matches(name, POLICIES, n=1)
    guess = f"did you mean `{close[0]}`? " if close else ""
    known = ", ".join(f"`{known}`" for known in POLICIES)
    raise _problem(name, "is not known", f"{guess}policies are {known}, or your own `module:Class`")


def _load(name: str) -> PolicyFactory:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise _problem(
            name,
            f"can not be imported: {error}",
            "install the package that has the module, or put its folder on PYTHONPATH",
        ) from error
    factory = getattr(module, class_name, None)
    if not callable(factory):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        close = difflib.get_close_matches(class_name, classes, n=1)
        hint = f"did you mean `{module_name}:{close[0]}`?" if close else "check the class's name"
        raise _problem(name, f"names no class of `{module_name}`", hint)
    return factory  # type: ignore[no-any-return]  # checked by make_policy once it is made


def _options(factory: PolicyFactory) -> str:
    names = inspect.signature(factory).parameters
    return ", ".join(f"`{name}`" for name in names) or "none"


def _missing(policy: object) -> list[str]:
    wanted = (
        "name",
        "__len__",
        "push",
        "peek",
        "pop",
        "remove",
        "candidates",
        "preempts",
        "served",
        "ended",
    )
    return [f"`{name}`" for name in wanted if not hasattr(policy, name)]


def _problem(name: str, what: str, hint: str) -> PermanentError:
    return PermanentError(f"policy `{name}` {what}", context="scheduler.policy", hint=hint)
