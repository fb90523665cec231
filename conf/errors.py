"""Find the user's own error inside what the libraries wrapped around it."""

import re
from collections.abc import Iterator

from conf.schema import InputError

# Ray Data's error loses its cause on the way between processes; only the text of the remote traceback has it.
_TOLD = re.compile(r"^conf\.schema\.InputError: (.+)\n\nThe above exception was the direct cause", re.MULTILINE)


def user_error(error: BaseException) -> InputError | None:
    """The `InputError` that began `error`, as it was raised, or None when the fault is not the user's.

    A Ray task's error arrives as a subclass of both RayTaskError and InputError whose text is the whole remote
    traceback; Ray Train keeps the errors of its workers in a dict by rank. Both are read by attribute, so that this
    needs no Ray.
    """
    seen: set[int] = set()
    queue = [error]
    while queue:
        here = queue.pop(0)
        if id(here) in seen:
            continue
        seen.add(id(here))
        if isinstance(here, InputError) and not hasattr(here, "cause"):
            return here
        if "UserCodeException" in type(here).__name__ and (told := _TOLD.search(str(here))):
            return InputError(told[1])
        queue += _inside(here)
    return None


def _inside(error: BaseException) -> Iterator[BaseException]:
    failures = getattr(error, "worker_failures", None)
    nested = list(failures.values()) if isinstance(failures, dict) else []
    nested += [getattr(error, name, None) for name in ("cause", "controller_failure", "_base_exc", "__cause__")]
    nested += [error.__context__] if not error.__suppress_context__ else []
    nested += getattr(error, "exceptions", ())
    yield from (item for item in nested if isinstance(item, BaseException))
