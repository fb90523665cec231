"""`--help`: at once, of the job at hand, with the values that count."""

import re
import resource

from conf.entry import compose
from conf.help import SECTIONS, help_text, knobs
from tests.conf.test_entry import ROOT, run


def seconds_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def shown(text: str) -> dict[str, str]:
    return {line.split("  ")[1]: line for line in text.splitlines() if line.startswith("  ")}


def test_help_names_the_job_the_groups_and_the_knobs_at_once() -> None:
    took = []
    for _ in range(3):  # the best of three, in the processor's time: the machine may be busy
        began = seconds_of_children()
        ended = run("--help", "preset=test", "run.seed=7")
        took.append(seconds_of_children() - began)
    assert ended.returncode == 0
    assert ended.stdout.startswith("Run the stages of a preset in order")
    assert "usage: python -m cluster.pipeline [group=choice ...]" in ended.stdout
    assert "  model={base,demo,small,tiny}\n" in ended.stdout
    lines = shown(ended.stdout)
    assert lines["tracker.kind=none"] == "  tracker.kind=none" and "run.seed=7" in lines and "run.name=test" in lines
    assert "optim.clip=1.0" not in lines and "--help all shows the sections of other jobs too: model, " in ended.stdout
    assert min(took) < 1.5
    whole = run("all", "--help")
    assert shown(whole.stdout)["optim.clip=1.0"].endswith("  global gradient norm")
    wrong = run("--help", "optim.lrr=3")
    assert (wrong.returncode, wrong.stdout) == (2, "") and "did you mean optim.lr?" in wrong.stderr


def test_help_of_a_job_shows_what_it_reads_with_the_values_that_count() -> None:
    text = help_text("Pretrain.", "trainers.pretrain", compose([]))
    assert "model.hidden_size=192" in shown(text) and "sft.steps" not in text  # of model=demo, not the schema's
    assert "model.hidden_size=64" in shown(help_text("", "trainers.pretrain", compose(["preset=test"])))
    sections = [line for line in text.splitlines() if re.fullmatch(r"\w+", line) and line != "groups"]
    assert sections == SECTIONS["trainers.pretrain"].split() and sections[0] == "pretrain"
    whole = help_text("", "trainers.pretrain", compose([]), whole=True)
    assert {line.split("=")[0] for line in shown(whole)} >= set(knobs())


def test_every_section_that_a_job_names_is_in_its_help() -> None:
    found = set()
    every = {name.partition(".")[0] for name in knobs()}
    rooms = ("trainers", "rlhf", "moe", "serving", "cluster")
    for path in [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]:
        source = path.read_text("utf-8")
        if "\n@job\n" not in source:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found.add(module)
        body = source[source.index("\n@job\n") :]
        body = body[: body.find("\ndef ", body.index("def main") + 1)]
        named = set(re.findall(r"\bcfg\.(\w+)", body)) & every
        if "Plan.of(" in source:
            named |= set("optim compute doctor spikes gpu checkpoints cluster tracker run".split())
        assert named <= set(SECTIONS[module].split()), module
    assert found == SECTIONS.keys()


PLANTED = [  # promise, file, right code, bug, test
    (
        "help shows what presets make of a knob",
        "conf/help.py",
        "_shown(_value(config, name))",
        "_shown(knobs()[name][0])",
        "test_help_of_a_job_shows_what_it_reads_with_the_values_that_count",
    ),
]
