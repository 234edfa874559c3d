"""Walls between the tasks of the root task group: what fails behind one ends alone, and is logged once."""

from collections.abc import Awaitable, Callable
from typing import TypeVarTuple, cast

from omnid.errors import Fatal, OmnidError
from omnid.log import Logger

Args = TypeVarTuple("Args")


async def guard(name: str, fn: Callable[[*Args], Awaitable[object]], *args: *Args, log: Logger) -> None:
    """Awaits ``fn(*args)``; whatever it raises is logged once under `name` and goes no further.

    Only Fatal passes, also out of an exception group, and cancellation, which belongs to the scope around. An
    OmnidError is logged as its code and sentences, anything else with its traceback: it is a fault in omnid.
    """
    try:
        await fn(*args)
    except Exception as error:  # noqa: BLE001 - being the wall for whatever comes is what a guard is for.
        _settle(name, error, log)
    except BaseExceptionGroup as group:
        # Only trio mixes errors with its Cancelled: the errors end here, the cancellation goes on.
        errors, rest = group.split(Exception)
        if errors is not None:
            _settle(name, errors, log)
        if rest is not None:
            raise rest from None


def _settle(name: str, error: Exception, log: Logger) -> None:
    """Raises the Fatal that is in the error, if there is one; logs the error otherwise."""
    worst = first(error)
    if isinstance(worst, Fatal):
        raise worst
    if isinstance(worst, OmnidError) and len(_leaves(error)) == 1:
        log.error("guard_ended", name=name, problem=worst.as_dict())
    else:
        log.error("guard_ended", name=name, exc_info=error)


def first(error: BaseException) -> BaseException:
    """Gives the error inside a group that decides: a Fatal, else a fault, else the first of omnid's own.

    Cancellation, which only trio puts into groups, comes last.
    """
    return min(_leaves(error), key=_rank)


def _rank(leaf: BaseException) -> int:
    if isinstance(leaf, OmnidError):
        return 0 if isinstance(leaf, Fatal) else 2
    return 1 if isinstance(leaf, Exception) else 3


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    parts = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return [leaf for part in parts for leaf in _leaves(part)]
