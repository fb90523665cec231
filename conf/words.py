"""Words of a command line as hydra's grammar wants them: own names and texts in any script, a file's words, sweeps."""

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import InputError
from conf.help import dict_knobs, groups, quoted

# Hydra's names are ASCII, and those of tasks need not be: 诗 is $8bd7$ on its way through.
_LETTER = re.compile(r"[^\x00-\x7f]")
_CODED = re.compile(r"\$([0-9a-f]+)\$")


def opened(words: list[str]) -> list[str]:
    """The words as hydra can read them: a knob that is a dict takes new names without "+", a text of letters beyond
    ASCII needs no quotes."""
    return [_opened(word) for word in words]


def _opened(word: str) -> str:
    name, equals, value = word.partition("=")
    known = name.startswith(tuple(f"{knob}." for knob in dict_knobs()))
    if known or (name in dict_knobs() and value.startswith("{")):
        name = f"++{_coded(name)}"
    return name + equals + (value if value.isascii() else _spelled(value))


def decoded(text: str) -> str:
    """The inverse of what happens to a name."""
    return _CODED.sub(lambda code: chr(int(code[1], 16)), text)


def _coded(name: str) -> str:
    return _LETTER.sub(lambda letter: f"${ord(letter[0]):x}$", name)


def _spelled(value: str) -> str:
    """`value` with quotes around each text that needs them, within lists and dicts too; names in a dict are coded."""
    out, inside = "", ""  # `inside`: the brackets that are open
    for part in re.findall(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[][{}(),:]|[^][{}(),:"']+|.""", value, re.DOTALL):
        if part in "[{(":
            inside += part
        elif part in "]})":
            inside = inside[:-1]
        if part.isascii() or part[0] in "\"'":
            out += part
        else:
            out += quoted(part.strip())
    # A text that goes on after a colon is one text; before one in a dict it is a name.
    return re.sub(r'"([^"]*)":', lambda name: f"{_coded(name[1])}:", out) if "{" in value else out


def file_words(words: list[str]) -> list[str]:
    """The words that the file named by `run.config=` holds, to stand before those of the command line."""
    given = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("run.config=")]
    path = given[-1].strip("\"'") if given else ""
    if not path:
        return []
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise InputError(f"run.config={path}: no such file; give the YAML of knobs that a sweep wrote") from None
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise InputError(f"run.config={path}: no YAML can be read here ({str(error).splitlines()[0]})") from None
    except Exception as error:  # the YAML library's own kinds, which nothing else here needs to know
        raise InputError(f"run.config={path}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, Mapping):
        raise InputError(f"run.config={path} must hold knobs by section, such as optim: {{lr: 0.001}}")
    return list(_leaf_words(tree, ""))


def _leaf_words(tree: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaf_words(value, f"{prefix}{name}.")
        else:
            literal = str(value) if not prefix and name in groups() else written(value)
            yield f"{prefix}{name}={literal}"


def written(value: Any) -> str:
    """A value as a word has it after "=", whatever it holds."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(written(item) for item in value)}]"
    return str(value) if isinstance(value, int | float) else quoted(str(value))


def combinations(words: list[str], loader: Any) -> list[tuple[list[str], list[str]]]:
    """(all its words, those that set it apart) of each job of a sweep: every combination of the words' values, as
    hydra's grammar has them: `a,b`, `choice(a,b)`, `range(1,9,2)`, `glob(*)`. `loader` knows the groups."""
    choices: list[list[str]] = []
    swept: list[int] = []
    for place, override in enumerate(OverridesParser.create(config_loader=loader).parse_overrides(opened(words))):
        if not override.is_sweep_override():
            choices.append([words[place]])
            continue
        if not override.is_discrete_sweep():
            raise InputError(f"{words[place]}: endless values; write some, such as {override.key_or_group}=a,b")
        key = decoded(override.get_key_element().lstrip("+"))
        choices.append([f"{key}={decoded(value)}" for value in override.sweep_string_iterator()])
        swept.append(place)
    return [(list(job), [job[place] for place in swept]) for job in product(*choices)]
