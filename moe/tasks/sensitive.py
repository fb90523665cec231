"""Words that filters of sensitive text look for, in data/words."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from moe.tasks.writing import fold, words

WORDS = Path(__file__).parents[2] / "data" / "words"
# Words of those lists that ordinary text has too (牛奶, 性格; "tied up"): a filter may look twice, a judge not.
EVERYDAY = frozenset(
    (
        "13. 13点 九游 乳 卵 奶 奸 妓 性 姦 幹 爛 賤 逼 鳩 撚 柒 尻 卵子 他妈 你妈 妈的 妈妈的 他娘 你娘 娘的 "
        "处女 外阴 后庭 成人 月经 激情 祖宗 私服 笨蛋 精子 老二 老母 玉杵 靠背 靠北 花柳 屁股 粉腸 口肯 老味 密洞 "
        "刚度 包皮 交配 十三点 anal bondage busty butt cialis cock cocks coon coons domination ecchi ejaculation "
        "erotic escort eunuch fecal fingering genitals grope hardcore hooker incest intercourse kinky lolita mong "
        "negro neonazi nipple nipples nude nudity orgy panties penis playboy poof pubes rape rapist rectum sadism "
        "santorum scat semen sex sexual sexuality sexually sexy skeet snatch snowballing spastic spunk suck sucks "
        "swastika swinger topless twinkie undressing vagina viagra vibrator voyeur vulva xx xxx bareback bimbos "
        "boner dick horny humping pegging scissoring shota shrimping smut throating bastard clitoris dingleberry "
        "dingleberries barenaked"
    ).split()
) | {
    *("auto erotic", "barely legal", "big black", "date rape", "deep throat", "dog style", "donkey punch", "girl on"),
    *("hard core", "hot chick", "how to kill", "huge fat", "jelly donut", "mr hands", "s&m", "strap on", "strip club"),
    *(
        "tainted love",
        "taste my",
        "tea bagging",
        "tied up",
        "tight white",
        "tongue in a",
        "white power",
        "wrapping men",
    ),
}


def sensitive(answer: str) -> str:
    """The first word of the lists in data/words that the answer has, "" for none. English ones as
    words of their own."""
    phrases, pattern = _sensitive()
    folded = fold(answer)
    if found := pattern.search(folded):
        return found[0]
    said = words(folded)
    for place, first in enumerate(said):
        for phrase in phrases.get(first, ()):
            if tuple(said[place : place + len(phrase)]) == phrase:
                return " ".join(phrase)
    return ""


@cache
def _sensitive() -> tuple[Mapping[str, Sequence[tuple[str, ...]]], re.Pattern[str]]:
    """English phrases by their first word, and a pattern of the Chinese ones."""
    lists = {name: json.loads((WORDS / f"{name}.json").read_text(encoding="utf-8")) for name in ("en", "zh")}
    phrases: dict[str, list[tuple[str, ...]]] = {}
    for word in lists["en"]:
        parts = tuple(words(fold(word)))
        if word not in EVERYDAY and parts:
            phrases.setdefault(parts[0], []).append(parts)
    chinese = sorted({fold(word) for word in lists["zh"] if word not in EVERYDAY}, key=lambda word: (-len(word), word))
    return phrases, re.compile("|".join(map(re.escape, chinese)))
