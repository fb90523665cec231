"""What tells who someone is: planted and found, numbers that tell nothing left alone."""

import random
from collections import Counter

import pytest

from conf.errors import InputError
from trainers.clean.document import Document
from trainers.clean.pii import KINDS, edited, found_in, id_card, luhn, pii

ALL = dict.fromkeys(KINDS, "redact")
FRAMES = (  # around what is planted; half of them full of numbers of their own
    "请在{}之前联系我们，谢谢。",
    "他的资料是{}，2024年3月15日登记，金额12,500.00元。",
    "联系方式：{}；订单号 20240315001，共3件。",
    "Please write down {} before 10:30, room 204.",
    "It is {}. We paid $1,299.99 in 2021 for 3 of them.",
    "「{}」",
)
HARMLESS = (
    "全书共 1,234 页，售价 98.50 元，2019 年 5 月 1 日出版，ISBN 978-7-04-051234-5。",
    "人口 14 1177 8724 人，面积 960 万平方公里，北纬 39.9042 度，东经 116.4074 度。",
    "订单号 202403150012345678，快递单号 75312345678901，合同编号 HT-2023-000123。",
    "版本 3.11.4.2 已发布，Chrome 120.0.6099.109，内核 5.15.0.91。",
    "本机地址是 127.0.0.1，内网用 192.168.1.10 和 10.0.0.1，掩码 255.255.255.0。",
    "比分 3:2，时间 12:30:45，比例 1:1000，页码 10-20，区间 100-200-300。",
    "The speed of light is 299792458 m/s and pi is 3.14159265358979323846.",
    "Call me Ishmael. Some years ago (2019-2021) there were 1234567890 of them.",
    "It cost 1,234,567.89 dollars in 1987, 15 percent more than 1,073,537.30.",
    "git commit 9fceb02d0ae598e95dc970b74767f19372d61af8, md5 d41d8cd98f00b204e9800998ecf8427e.",
    "手机屏幕 1080x2400，电池 5000 毫安时，重 187.5 克，型号 SM-G9910。",
    "价格从 13800 元涨到 15900 元，第 12345678901234 号专利。",
    "一九四九年十月一日，中华人民共和国成立。床前明月光，疑是地上霜。",
    "See section 10.2.3.4 of the standard, table 1.2.3.4.5, and @property in Python.",
    "a @ b, x@y, user at example dot com, foo@bar; sk-learn and token: required",
    "std::vector, ::before, 12:34, a::b, C:\\Users, http://localhost:8080/x",
)


def identity_number(dice: random.Random) -> str:
    body = f"{dice.choice(['110105', '310104', '440305', '510107'])}{dice.randint(1950, 2010)}"
    body += f"{dice.randint(1, 12):02d}{dice.randint(1, 28):02d}{dice.randint(0, 999):03d}"
    return next(body + last for last in "0123456789X" if id_card(body + last))


def card(dice: random.Random) -> str:
    body = dice.choice(["621226", "622848", "453212", "521899"])
    body += "".join(dice.choice("0123456789") for _ in range(9))
    digits = next(body + last for last in "0123456789" if luhn(body + last))
    return " ".join(digits[at : at + 4] for at in range(0, 16, 4)) if dice.random() < 0.5 else digits


def planted(dice: random.Random, kind: str) -> str:
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    word = lambda size: "".join(dice.choice(letters) for _ in range(size))  # noqa: E731
    mobile = f"1{dice.choice('3456789')}{dice.randint(0, 9)}{dice.randint(0, 99999999):08d}"
    by_kind = {
        "mail": [f"{word(6)}.{word(3)}@{word(5).lower()}.com", f"{word(8)}@mail.{word(4).lower()}.edu.cn"],
        "phone": [
            mobile,
            f"+86 {mobile}",
            f"{mobile[:3]}-{mobile[3:7]}-{mobile[7:]}",
            f"{mobile[:3]} {mobile[3:7]} {mobile[7:]}",
            f"010-{dice.randint(20000000, 89999999)}",
            f"({dice.randint(201, 989)}) {dice.randint(201, 989)}-{dice.randint(1000, 9999)}",
            f"+44 20 {dice.randint(1000, 9999)} {dice.randint(1000, 9999)}",
        ],
        "id_card": [identity_number(dice)],
        "bank_card": [card(dice)],
        "ip": [".".join(str(dice.randint(11, 99)) for _ in range(4)), "2400:cb00:2048:1::c629:d7a2"],
        "key": [
            f"AKIA{word(16).upper()}",
            f"ghp_{word(36)}",
            f"sk-{word(48)}",
            f"AIza{word(35)}",
            f'api_key = "{word(31)}1"',
            f"eyJ{word(20)}.eyJ{word(40)}.{word(43)}",
        ],
    }
    return dice.choice(by_kind[kind])


def test_planted_ones_are_found_and_ordinary_numbers_left_alone() -> None:
    dice = random.Random(0)
    found, false = Counter[str](), 0
    for number in range(1200):
        kind = KINDS[number % len(KINDS)]
        text = dice.choice(FRAMES).format(planted(dice, kind))
        kinds = [one.kind for one in found_in(text)]
        found[kind] += kind in kinds
        false += len([other for other in kinds if other != kind])
    assert {kind: found[kind] / 200 >= 0.98 for kind in KINDS} == dict.fromkeys(KINDS, True), found
    assert false <= 12  # 1 % of the texts
    assert {text: found_in(text) for text in HARMLESS if found_in(text)} == {}


def test_checksums() -> None:
    assert id_card("11010519491231002X") and not id_card("110105194912310021")  # the standard's own example
    assert not id_card("11010519491331002X") and not id_card("99010519491231002X")
    assert luhn("4111111111111111") and not luhn("4111111111111112")
    assert [one.kind for one in found_in("4111 1111 1111 1111")] == []  # two digits only: an example's
    assert [one.kind for one in found_in("卡号4532 1234 5678 9019")] == (
        ["bank_card"] if luhn("4532123456789019") else []
    )
    assert [one.kind for one in found_in("身份证１１０１０５１９４９１２３１００２Ｘ")] == ["id_card"]  # full width


def test_ways() -> None:
    text = "邮箱 li.lei@mail.cn，电话 13912345678，服务器 8.8.8.8。"
    assert edited(text, ALL) == ("邮箱 [mail]，电话 [phone]，服务器 [ip]。", ["mail", "phone", "ip"])
    replaced, kinds = edited(text, dict.fromkeys(KINDS, "replace"))
    assert kinds == ["mail", "phone", "ip"] and "li.lei" not in replaced and "@example.com" in replaced
    assert edited(text, dict.fromkeys(KINDS, "replace"))[0] == replaced
    assert edited(replaced, ALL)[1] == ["mail"]  # what stands in is no phone and no address of anybody's
    assert edited(text, ALL | {"mail": "keep"})[0] == "邮箱 li.lei@mail.cn，电话 [phone]，服务器 [ip]。"
    document, other = Document(text), Document("nothing here")
    pii({"phone": "drop"})([document, other])
    assert document.verdict is not None and (document.verdict.rule, document.verdict.value) == ("phone", 1.0)
    assert other.verdict is None and not other.changes
    with pytest.raises(InputError, match="corpus.pii.fax: no such kind; there are key, mail"):
        pii({"fax": "drop"})
    with pytest.raises(InputError, match="corpus.pii.mail=hide: must be one of keep, redact"):
        pii({"mail": "hide"})


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a citizen's number has its check digit",
        "trainers/clean/pii.py",
        "_CHECKS[check] == digits[17].upper()",
        "True",
        "test_checksums",
    ),
    (
        "a card's number has its check digit",
        "trainers/clean/pii.py",
        "len(set(digits)) > 2 and luhn(digits)",
        "True",
        None,
    ),
    (
        "a private address is nobody's",
        "trainers/clean/pii.py",
        "return ip_address(found).is_global",
        "return True",
        None,
    ),
    (
        "a version is no address",
        "trainers/clean/pii.py",
        'if kind == "ip" and _VERSION',
        "if False and _VERSION",
        "test_planted_ones_are_found_and_ordinary_numbers_left_alone",
    ),
    (
        "digits of full width are digits",
        "trainers/clean/pii.py",
        "folded := text.translate(_FOLDED)",
        "folded := text",
        "test_checksums",
    ),
]
