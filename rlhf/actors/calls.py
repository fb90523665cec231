"""Why a remote call failed, in one line."""

import re

from ray.exceptions import RayActorError, RayTaskError

from conf.errors import InputError, cluster_failure, user_error

_TOLD = re.compile(r"conf\.errors\.InputError: (.+)")  # inside the text of an actor that died while it was made
_LINE = re.compile(r'File "(?:[^"]*/)?([^"/]+)", line (\d+)')  # of a traceback
_LONGEST = 300  # characters of somebody else's words


class ActorFailed(InputError):
    """An actor died or did not answer in time. The message names it and the call."""


class RankLost(Exception):
    """One of the processes of a learner or a critic died, and what they held together is gone with it."""


def refused(error: Exception) -> InputError | None:
    """The user's own error that ended a call, or the actor that was made for it; None where that was another."""
    if isinstance(error, RayActorError):
        told = _TOLD.search(str(error))
        return InputError(told[1].strip()) if told else None
    return user_error(error)


def reason(error: Exception) -> str:
    """'the actor died (...)', 'ZeroDivisionError: division by zero (rules.py:12)'."""
    if isinstance(error, RayActorError):
        return f"the actor died ({_first_line(error)})"
    if isinstance(error, RayTaskError) and not cluster_failure(error):
        cause = getattr(error, "cause", error)
        lines = _LINE.findall(str(error))
        where = f" ({lines[-1][0]}:{lines[-1][1]})" if lines else ""
        return f"{type(cause).__name__}: {_first_line(cause)}{where}"
    return cluster_failure(error) or f"{type(error).__name__}: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:_LONGEST] for line in lines if line), type(error).__name__)
