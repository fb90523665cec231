"""A domain of one's own: what it lacks and what goes wrong in it is one line that names the module."""

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import pytest

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from moe.tasks.domain import SPLITS, Domain
from moe.tasks.task import PRINCIPLES, Sample, Source

WHOLE = """
from moe.tasks.task import Sample, Verdict

PRINCIPLES = ("short", "true")
OPTIONS = {"brevity": 0.5, "truth": 2.0}
FIELDS = ("year",)


def samples(source, cfg, seed):
    splits = ("train", "val", "prompts", "test_prompts")
    said = [{"role": "user", "content": "?"}]
    return {name: [Sample(id=f"{name}-{n}", task="say", messages=said) for n in range(2)] for name in splits}


def judge(folder, options):
    return lambda query, text, finished: Verdict({"short": 1.0, "true": 0.0}, options["brevity"])
"""
QUERY = Sample(id="q7", task="say", messages=[{"role": "user", "content": "?"}])
NOTHING = Source(records=lambda _: iter(()), documents=lambda _: iter(()), own=[], queries=[], folder=Path())
Write = Callable[..., Tasks]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Write:
    """Writes a module, whose name is that of the test, and the config that names it."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"domain_{abs(hash(request.node.nodeid))}"

    def written(code: str = WHOLE, *, was: str = "", now: str = "", **knobs: object) -> Tasks:
        assert was in code
        (tmp_path / f"{name}.py").write_text(code.replace(was, now) if was else code, "utf-8")
        return Tasks(domain=name, **knobs)  # type: ignore[arg-type]

    return written


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value) and type(error.value) is InputError
    return str(error.value)


def test_a_domain_of_ones_own(write: Write, tmp_path: Path) -> None:
    cfg = write(options={"brevity": 0.75})
    domain = Domain.of(cfg)
    assert (domain.principles, domain.fields) == (("short", "true"), ("year",))
    assert domain.options == {"brevity": 0.75, "truth": 2.0} and len(domain.digest) == 64
    assert {split: len(made) for split, made in domain.samples(NOTHING, cfg, 0).items()} == dict.fromkeys(SPLITS, 2)
    assert domain.judge(tmp_path)(QUERY, "hm", True).reward == 0.75
    domain.try_on(tmp_path, [QUERY])
    assert domain.chosen([]) == ("short", "true") and domain.chosen(["true"]) == ("true",)
    with pytest.raises(InputError) as error:
        domain.chosen(["kind"])
    assert one_line(error) == f"rank.principles: 'kind' is none of tasks.domain={cfg.domain}; it has short, true"


def test_without_principles_there_are_the_five(write: Write) -> None:
    assert Domain.of(write(was='PRINCIPLES = ("short", "true")')).principles == PRINCIPLES
    assert Domain.of(Tasks()).digest == ""  # ours has a version instead


def test_a_module_that_is_not_there_is_named() -> None:
    for name in ("my.domain", "nowhere"):
        with pytest.raises(InputError) as error:
            Domain.of(Tasks(domain=name))
        assert one_line(error) == f"tasks.domain={name}: no such module; it is looked for from {Path.cwd()}"
    for name in ("", "my/domain.py", "domain.py", ".domain"):
        with pytest.raises(InputError) as error:
            Domain.of(Tasks(domain=name))
        assert one_line(error) == f"tasks.domain={name!r} must be the name of a module, such as data.verse or my.domain"


def test_what_a_module_imports_and_is_not_there_is_named(write: Write) -> None:
    cfg = write("import nowhere.at_all\n" + WHOLE)
    with pytest.raises(InputError) as error:
        Domain.of(cfg)
    assert one_line(error).startswith(f"tasks.domain={cfg.domain}: it imports nowhere, which is not there; it is")


@pytest.mark.parametrize("code", ["1 / 0\n", "raise RuntimeError('two\\nlines')\n", "def (:\n"])
def test_a_module_that_raises_when_it_is_imported_is_named(write: Write, code: str) -> None:
    cfg = write(code + WHOLE)
    with pytest.raises(InputError) as error:
        Domain.of(cfg)
    reasons = ("ZeroDivisionError: division by zero", "RuntimeError: two lines", "SyntaxError: invalid syntax")
    told = one_line(error)
    assert any(told.startswith(f"tasks.domain={cfg.domain}: importing it raised {reason}") for reason in reasons)


@pytest.mark.parametrize("function", ["samples", "judge"])
def test_a_function_that_it_lacks_is_named(write: Write, function: str) -> None:
    cfg = write(was=f"def {function}(", now="def other(")
    with pytest.raises(InputError) as error:
        Domain.of(cfg)
    assert one_line(error).startswith(f"tasks.domain={cfg.domain}: the module has no function {function}; moe/tasks/")


@pytest.mark.parametrize("principles", ["('one',)", "()", "'ab'", "('a', 3)", "('a', '')", "5"])
def test_principles_are_two_names_or_more(write: Write, principles: str) -> None:
    cfg = write(was='("short", "true")', now=principles)
    with pytest.raises(InputError) as error:
        Domain.of(cfg)
    assert (
        one_line(error)
        == f"tasks.domain={cfg.domain}: PRINCIPLES={principles.replace(chr(34), '')} must name two or more"
    )


def test_an_option_that_it_does_not_have_is_named(write: Write) -> None:
    cfg = write(options={"brevety": 1.0})
    with pytest.raises(InputError) as error:
        Domain.of(cfg)
    assert one_line(error) == (
        f"tasks.options.brevety: tasks.domain={cfg.domain} has no such option; it has brevity, truth"
    )


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("1 / 0", "raised ZeroDivisionError: division by zero"),
        ("{}['rhyme']", "raised KeyError: 'rhyme'"),
        ("None", "it must give a Verdict, not NoneType"),
        ("0.5", "it must give a Verdict, not float"),
        ("Verdict({'short': 1.5, 'true': 0.0}, 0.0)", "scores['short']=1.5 must be a number in [0, 1]"),
        ("Verdict({'short': 1.0, 'true': -0.1}, 0.0)", "scores['true']=-0.1 must be a number in [0, 1]"),
        ("Verdict({'short': 1.0}, 0.0)", "scores['true']=None must be a number in [0, 1]"),
        ("Verdict({'short': 1.0, 'true': float('nan')}, 0.0)", "scores['true']=nan must be a number in [0, 1]"),
        ("Verdict({'short': 1.0, 'true': 0.0}, float('nan'))", "reward, measures and placed must be finite numbers"),
        ("Verdict({'short': 1.0, 'true': 0.0}, None)", "reward, measures and placed must be finite numbers"),
        (
            "Verdict({'short': 1.0, 'true': 0.0}, 0.0, measures={'a': float('inf')})",
            "reward, measures and placed must be finite numbers",
        ),
        (
            "Verdict({'short': 1.0, 'true': 0.0}, 0.0, placed=((0, float('nan')),))",
            "reward, measures and placed must be finite numbers",
        ),
        ("Verdict(None, 0.0)", "raised AttributeError: 'NoneType' object has no attribute 'get'"),
        (
            "Verdict({'short': 1.0, 'true': 0.0}, 0.0, placed=(1, 2))",
            "raised TypeError: cannot unpack non-iterable int object",
        ),
    ],
)
def test_a_verdict_that_cannot_be_names_module_sample_and_reason(
    write: Write, tmp_path: Path, said: str, reason: str
) -> None:
    cfg = write(was='Verdict({"short": 1.0, "true": 0.0}, options["brevity"])', now=said)
    judge = Domain.of(cfg).judge(tmp_path)
    with pytest.raises(InputError) as error:
        judge(QUERY, "hm", True)
    told = one_line(error)
    assert told.startswith(f"tasks.domain={cfg.domain}: judge of sample q7 (task say)") and told.endswith(reason)
    with pytest.raises(InputError, match="judge of sample q7"):
        Domain.of(cfg).try_on(tmp_path, [QUERY])


def test_its_own_user_error_stays_as_it_is(write: Write, tmp_path: Path) -> None:
    code = WHOLE.replace("    return lambda", "    raise InputError('words.txt is missing')\n    return lambda")
    with pytest.raises(InputError) as error:
        Domain.of(write("from conf.errors import InputError\n" + code)).judge(tmp_path)
    assert one_line(error) == "words.txt is missing"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ("for n in range(2 * (name != 'prompts'))]", "samples made nothing for 'prompts'"),
        ("for n in range(2)][0]", "samples must make a list of Sample for 'train'"),
        ("for n in range(2)] + [{}]", "samples must make a list of Sample for 'train'"),
        ("for n in (0, 0)]", "samples made two of 'train' with the id 'train-0'"),
        ("for n in range(1 // 0)]", "samples raised ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_samples_that_cannot_be_are_named(write: Write, now: str, reason: str) -> None:
    cfg = write(was="for n in range(2)]", now=now)
    with pytest.raises(InputError) as error:
        Domain.of(cfg).samples(NOTHING, cfg, 0)
    assert one_line(error) == f"tasks.domain={cfg.domain}: {reason}"


def test_samples_that_are_no_mapping_are_named(write: Write) -> None:
    cfg = write(was="    return {name:", now="    return None and {name:")
    with pytest.raises(InputError, match="samples made nothing for 'train'"):
        Domain.of(cfg).samples(NOTHING, cfg, 0)


def test_a_changed_source_is_another_domain(write: Write, tmp_path: Path) -> None:
    first = Domain.of(cfg := write())
    path = tmp_path / f"{cfg.domain}.py"
    path.write_text(path.read_text("utf-8") + "# more\n", "utf-8")
    again = Domain.of(cfg)
    assert first.digest != again.digest and replace(first, digest="") == replace(again, digest="")


def test_what_is_no_number_is_no_option() -> None:
    for bad in (nan, inf):
        with pytest.raises(InputError, match=r"^tasks.options.truth="):
            Tasks(options={"truth": bad})


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an import that fails inside a domain is told as that",
        "moe/tasks/domain.py",
        "if error.name not in _parents(name) else",
        "if error.name in _parents(name) else",
        "test_what_a_module_imports_and_is_not_there_is_named",
    ),
    (
        "a domain's option with a typo is named",
        "moe/tasks/domain.py",
        "if name not in options:",
        "if not options:",
        "test_an_option_that_it_does_not_have_is_named",
    ),
    (
        "a judge that raises is named with its sample",
        "moe/tasks/domain.py",
        "verdict = self._guarded(where, lambda: judge(query, text, finished))",
        "verdict = judge(query, text, finished)",
        "test_a_verdict_that_cannot_be_names_module_sample_and_reason",
    ),
    (
        "a score lies in [0, 1]",
        "moe/tasks/domain.py",
        "not 0 <= score <= 1",
        "not 0 <= score",
        "test_a_verdict_that_cannot_be_names_module_sample_and_reason",
    ),
    (
        "a reward is a finite number",
        "moe/tasks/domain.py",
        "isinstance(number, int | float) and isfinite(number) for number in numbers",
        "isinstance(number, int | float) for number in numbers",
        "test_a_verdict_that_cannot_be_names_module_sample_and_reason",
    ),
    (
        "two samples have two ids",
        "moe/tasks/domain.py",
        "if len(set(ids)) < len(ids):",
        "if not ids:",
        "test_samples_that_cannot_be_are_named",
    ),
    (
        "every split has samples",
        "moe/tasks/domain.py",
        "or not made.get(split):",
        "or split not in made:",
        "test_samples_that_cannot_be_are_named",
    ),
    (
        "one principle is none",
        "moe/tasks/domain.py",
        "if len(principles) < 2 or not all(",
        "if len(principles) < 1 or not all(",
        "test_principles_are_two_names_or_more",
    ),
    (
        "a changed domain makes its answers anew",
        "moe/tasks/domain.py",
        'digest = "" if cfg.domain.startswith(_OURS) else _digest(module)',
        'digest = ""',
        "test_a_changed_source_is_another_domain",
    ),
]
