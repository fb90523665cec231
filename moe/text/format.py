"""How a folder writes conversations and begins texts, out of the files beside its tokenizer.json.

A folder that brings a chat template keeps it, with the names that the template uses; one without gets ChatML.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import InputError
from moe.text.template import TEMPLATES

CONFIG_FILE, TEMPLATE_FILE = "tokenizer_config.json", "chat_template.jinja"
_OLDER, _ENDS = "special_tokens_map.json", ("generation_config.json", "config.json")  # the first that names an end


@dataclass(frozen=True)
class Format:
    template: str = ""  # the folder's own, in Jinja; "" stands for ours, ChatML
    names: Mapping[str, Any] = field(default_factory=dict)  # as tokenizer_config.json has them: bos_token, ...
    begins: bool | None = None  # whether bos_token comes before every text; None: as tokenizer.json says
    ends: tuple[int, ...] = ()  # ids on which the folder's model ends an answer
    given: bool = True  # the folder says how it writes conversations
    where: str = "the tokenizer"

    @classmethod
    def of(cls, files: Mapping[str, bytes], where: str, ends: tuple[int, ...] = ()) -> "Format":
        """From a tokenizer's files by name. Raises `InputError` naming one that cannot be used."""
        settings = {**_parsed(files, _OLDER, where), **_parsed(files, CONFIG_FILE, where)}
        written = files[TEMPLATE_FILE].decode() if TEMPLATE_FILE in files else settings.get("chat_template")
        if isinstance(written, list):  # several by name: [{"name", "template"}]
            written = {named["name"]: named["template"] for named in written}.get("default")
        names = {
            key: value
            for key, value in settings.items()
            if (key.endswith("_token") and _spelled(value))
            or key in ("additional_special_tokens", "extra_special_tokens")
        }
        begins = settings.get("add_bos_token")
        return cls(
            template="" if written in TEMPLATES else str(written or ""),
            names=names,
            begins=begins if isinstance(begins, bool) and "bos_token" in names else None,
            ends=ends,
            given=bool(written),
            where=where,
        )

    def spelled(self, name: str) -> str:
        """What `bos_token`, `eos_token` and so on stand for; "" where there is none."""
        return _spelled(self.names.get(name))

    @property
    def digest(self) -> str:
        """sha256 of all that decides how a conversation is written."""
        return hashlib.sha256(json.dumps([self.template, self.words], sort_keys=True).encode()).hexdigest()

    @property
    def words(self) -> dict[str, str]:
        """What the template may name."""
        return {name: self.spelled(name) for name in self.names if name.endswith("_token")}


def ends(folder: Path) -> tuple[int, ...]:
    """The ids on which the model of a folder ends an answer; () where no file names one."""
    for name in _ENDS:
        found = _read(folder / name).get("eos_token_id")
        if found is not None:
            return tuple(found) if isinstance(found, list) else (int(found),)
    return ()


def _spelled(value: Any) -> str:
    text = value.get("content") if isinstance(value, Mapping) else value
    return text if isinstance(text, str) else ""


def _read(path: Path) -> dict[str, Any]:
    return _parsed({path.name: path.read_bytes()}, path.name, str(path.parent)) if path.is_file() else {}


def _parsed(files: Mapping[str, bytes], name: str, where: str) -> dict[str, Any]:
    try:
        return dict(json.loads(files.get(name, b"{}")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: {name} is not a JSON object: {error}") from None
