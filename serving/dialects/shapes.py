"""The shape of an error is that of the API whose path was asked."""

import json
from typing import Any

from serving.dialects.strict import ApiError

_ANTHROPIC = "/v1/messages"
_RESPONSES = "/v1/responses"
_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def body(path: str, error: ApiError) -> dict[str, Any]:
    """The body of a response with an error's status."""
    if _under(path, _ANTHROPIC):
        kind = _KINDS.get(error.status_code, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": error.body["error"]["message"]}}
    return error.body


def event(path: str, error: ApiError, number: int = 0) -> str:
    """The last event of a stream that fails; `number` is how many came before."""
    told, name = body(path, error), ""
    if _under(path, _ANTHROPIC):
        name = "event: error\n"
    elif _under(path, _RESPONSES):
        inner = error.body["error"]
        told = {"type": "error", "code": inner["code"], "message": inner["message"], "param": inner["param"]}
        told["sequence_number"], name = number, "event: error\n"
    return f"{name}data: {json.dumps(told, ensure_ascii=False)}\n\n"


def _under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
