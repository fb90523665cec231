"""What makes an answer no answer, whatever was asked: each a share in [0, 1], in time linear in its length."""

import re
from collections.abc import Sequence

from moe.tasks.writing import CLOSING, MARKS, fold, is_item, main_writing, prose, sentences, words

_SORRY = (
    r"^(?:(?:well|hmm|oh|but|unfortunately|apologies|sorry|i'?m (?:very |so )?sorry|i am (?:very |so )?sorry"
    r"|i apologi[sz]e|i'?m afraid|i am afraid|as an? (?:ai|artificial)[^,.\n]{0,60})[,.!;: ]{0,3}){0,4}"
)
_ENGLISH = (
    rf"{_SORRY}i (?:really |just |simply )?(?:don'?t|do not|can'?t|cannot|can not|won'?t|will not|am not|have no"
    r"|am (?:not able|unable) to)(?: really)? (?:know|idea|answer|help|assist|provide|comply|fulfil|discuss|say|tell"
    r"|sure|generate|create|write|do that|have (?:(?:an|any|the|enough) )?(?:answer|information|access|ability))"
    r"|^i'm (?:not able to|unable to|not sure)|^no idea\b"
    r"|^as an? (?:ai|artificial)[^.\n]{0,80}\b(?:can'?t|cannot|unable|not able)"
)
_CHINESE = (
    r"^(?:很?抱歉|对不起|不好意思|作为(?:一个|一名)?(?:人工智能|ai|语言模型)[^。\n]{0,20})[，,。！ ]{0,2}"
    r"(?:但|我|暂时|目前|还){0,4}(?:无法|不能|不会|没法|没有办法|不知道|不清楚|不了解|不便)"
    r"|^我?(?:也|真的|还|并|暂时|目前|实在){0,2}(?:不知道|不太?清楚|不晓得|无法(?:回答|提供)|不能回答|没法回答)"
)
_REFUSES = re.compile(f"{_ENGLISH}|{_CHINESE}")
_OPENING = 300  # characters in which a refusal shows
_FULL = 60  # words; an answer that begins with "I don't know" and goes on so long does say something

_GRAM = 4  # words
_NATURAL, _HOPELESS = 0.1, 0.5  # shares of repeated words: below, names and terms come again; above, nothing is said
_STUTTER = re.compile(r"([^\W\d_]{1,4}?)\1{4,}")

_SPECIAL = re.compile(r"<\|[^|<>\n]{0,40}\|>|</?s>|<(?:unk|pad|bos|eos)>|\[/?INST\]|\ufffd")
_TURN = re.compile(r"^[ \t]*+(?:user|assistant|system|human|用户|助手) ?[:：]", re.IGNORECASE | re.MULTILINE)
_TAG = re.compile(r"</?[a-z][a-z0-9]{0,9}(?: [a-z-]{1,20}=[^<>\n]{0,80})? ?/?>", re.IGNORECASE)
_CODE = re.compile(r"html|xml|svg|markup|code|tag|网页|代码|标签|<[a-z/]|program|script|程序", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

_PAIRS = {"(": ")", "[": "]", "{": "}", "（": "）", "【": "】", "《": "》", "“": "”", "「": "」", "『": "』"}
_BRACKET = re.compile("[" + re.escape("".join([*_PAIRS, *_PAIRS.values()])) + "]")
_APART = re.compile(r"\s[.。！？]$")
_FOREIGN = {"latin": re.compile("[。！？]$"), "han": re.compile(r"[^.]\.$")}
_LAST = 200  # characters that show in which writing an answer ends


def empty(answer: str) -> bool:
    """It has no letter and no digit."""
    return not words(answer)


def refusal(answer: str) -> bool:
    """It says that it does not know, cannot or will not, and little else."""
    opening = fold(answer[:_OPENING]).lstrip(" \n\t\"'“*").replace("’", "'")
    found = _REFUSES.match(opening)
    if not found:
        return False
    firm = not any(mild in found[0] for mild in ("know", "sure", "不知道", "清楚", "了解"))
    return firm or len(words(answer[:2000])) <= _FULL


def repeats(answer: str) -> float:
    """How much of it was said before: sentences or runs of four words that come again, the same word three times and
    more in a row, one syllable drawn out. 0 for what ordinary text repeats, 1 from one half on."""
    said = [fold(word) for word in words(answer)]
    if len(said) < 3:
        return float(_drawn_out(answer) > _HOPELESS)
    share = max(_again(said), _stuttered(said), _said_twice(answer), _drawn_out(answer))
    return min(1.0, max(0.0, (share - _NATURAL) / (_HOPELESS - _NATURAL)))


def _again(said: Sequence[str]) -> float:
    grams = [tuple(said[at : at + _GRAM]) for at in range(len(said) - _GRAM + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _stuttered(said: Sequence[str]) -> float:
    """The share of words that are the third or a later of the same in a row, and their first two with them."""
    count = run = 0
    for place, word in enumerate(said):
        run = run + 1 if place and word == said[place - 1] else 1
        count += (run == 3) * 3 or (run > 3)
    return count / len(said)


def _said_twice(answer: str) -> float:
    seen: set[tuple[str, ...]] = set()
    total = twice = 0
    for sentence in sentences(answer):
        said = tuple(words(fold(sentence)))
        total += len(said)
        twice += len(said) * (len(said) > 1 and said in seen)
        seen.add(said)
    return twice / max(1, total)


def _drawn_out(answer: str) -> float:
    return sum(len(match[0]) for match in _STUTTER.finditer(answer)) / max(1, len(answer))


def once(answer: str) -> str:
    """The answer without the sentences that it says again: what repeats cannot count twice."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for line in answer.split("\n"):
        left = []
        for sentence in sentences(line):
            said = tuple(words(fold(sentence)))
            if said not in seen:
                seen.add(said)
                left.append(sentence)
        kept.append(" ".join(left))
    return "\n".join(line for line in kept if line)


def copied(answer: str, turns: Sequence[str]) -> bool:
    """It only says again what was said to it: a turn, one half or more of it in one piece, and no new word."""
    said = [fold(word) for word in words(answer)]
    spaced = _spaced(said)
    for turn in turns:
        had = [fold(word) for word in words(turn)]
        if len(had) < 4 or len(said) < 2:  # "hello" may be answered by "hello"
            continue
        whole = _spaced(had)
        if 2 * len(said) >= len(had) and spaced in whole:
            return True
        if whole in spaced and set(said) <= set(had):
            return True
    return False


def _spaced(said: Sequence[str]) -> str:
    return " " + " ".join(said) + " "


def markup(answer: str, question: str) -> bool:
    """It has marks that belong to no text: special tokens, turns of a chat, tags that nobody asked for."""
    if _SPECIAL.search(answer) or _TURN.search(answer) or _CONTROL.search(answer):
        return True
    return _CODE.search(question) is None and _TAG.search(prose(answer)) is not None


def unclosed(answer: str) -> bool:
    """A bracket, a quotation or a block of code that is opened and not closed, outside of code."""
    if answer.count("```") % 2:
        return True
    text, opened = prose(answer), []
    for match in _BRACKET.finditer(text):
        if match[0] in _PAIRS:
            opened.append(_PAIRS[match[0]])
        elif opened and opened[-1] == match[0]:
            opened.pop()
    inches = len(re.findall(r'\d"', text))
    return bool(opened) or (text.count('"') % 2 == 1 and not inches)


def real(answer: str) -> float:
    """1 where a quarter of what is written, or more, are letters and digits: JSON has not many more."""
    shown = len(re.sub(r"\s+", "", answer))
    return min(1.0, 4.0 * len(re.findall(r"[^\W_]", answer)) / shown) if shown else 0.0


def ends_well(answer: str) -> bool:
    """It ends like a sentence, a list, code or JSON."""
    text = answer.rstrip()
    if text.endswith(("```", "}", "]")):
        return True
    end = len(text)
    while end and not text[end - 1].isalnum() and text[end - 1] not in MARKS:  # a smile, closing quotes
        end -= 1
    return is_item(text[text.rfind("\n") + 1 :]) or bool(end and text[end - 1] in MARKS)


def mixed(answer: str) -> bool:
    """It ends with a mark of another writing, or one that stands apart: "banana 。"."""
    end = answer.rstrip(CLOSING + " \n")[-_LAST:]
    foreign = _FOREIGN.get(main_writing(end))
    return _APART.search(end) is not None or (foreign is not None and foreign.search(end) is not None)
