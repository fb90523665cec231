"""Which language a text is in, traditional characters as simplified ones, and words that weigh by their context."""

import json
from pathlib import Path

import pytest

from conf.errors import InputError
from conf.knobs.text import Corpus
from trainers.clean.document import Document
from trainers.clean.language import identified, simplified
from trainers.clean.rules import PACKS, rules
from trainers.clean.sensitive import weighed, words
from trainers.clean.steps import chain, taken, versions

TEXTS = {
    "zh": (
        "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
        "中華民國的歷史與文化，這是一個測試檔案。",
        "你好，世界",
    ),
    "en": ("The quick brown fox jumps over the lazy dog and it is not seen again.", "This is not what I had in mind."),
    "fr": ("Le café est bon aujourd'hui et nous sommes très contents de vous voir.",),
    "de": ("Die Straße ist heute sehr lang, und wir gehen langsam nach Hause.",),
    "ja": ("これはテストです。日本語の文章を書きました。",),
    "ko": ("이것은 시험입니다. 한국어로 쓰여진 글입니다.",),
    "ru": ("Сегодня мы идём домой по длинной улице и говорим о погоде.",),
    "code": (
        "import os\n\ndef size(path):\n    # of a file\n    return os.stat(path).st_size\n\nx = size('a')\n",
        "#include <a.h>\nint main(void) {\n  int x = 0;\n  return x;\n}\n",
    ),
    "": ("1234 5678 91011",),
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_language_is_told(language: str) -> None:
    assert [identified(text)[0] for text in TEXTS[language]] == [language] * len(TEXTS[language])


def after(texts: list[str], **knobs: object) -> list[Document]:
    block = [Document(text, {"text": text, "title": "臺灣"}) for text in texts]
    taken(chain(Corpus(**knobs)), block, "{text}")  # type: ignore[arg-type]
    return block


def test_only_the_languages_that_are_wanted_stay() -> None:
    texts = [TEXTS[language][0] for language in ("zh", "en", "fr", "code")]
    block = after(texts, steps=["language"], languages=["zh", "fr"])
    assert [one.language for one in block] == ["zh", "en", "fr", "code"]
    assert [one.verdict and one.verdict.rule for one in block] == [None, "language en", None, "language code"]
    with pytest.raises(InputError, match=r"corpus\.languages=\['zh'\] needs the step that tells: corpus\.steps=\[lang"):
        Corpus(languages=["zh"])


def test_a_language_without_rules_of_its_own_has_those_of_all() -> None:
    french = Document(TEXTS["fr"][0], language="fr")
    program = Document("x = 1;\n" * 40, language="code")
    rules({"other_characters": 10})([french, program])
    assert french.verdict is None
    assert program.verdict is not None and program.verdict.rule == "copied_lines"
    assert set(PACKS) == {"zh", "en", "code", ""}


def test_traditional_characters_become_simplified_ones_and_japanese_stays() -> None:
    block = after(
        ["中華民國的歷史與文化，頭髮乾燥，乾隆皇帝。", "日本語の歴史と體です、これは。"], steps=["simplified"]
    )
    assert block[0].text == "中华民国的历史与文化，头发干燥，乾隆皇帝。"
    assert block[0].record == {"text": block[0].text, "title": "台湾"}
    assert block[1].text == "日本語の歴史と體です、これは。"
    assert block[0].changes == {"simplified": 1}
    assert simplified("plain") == "plain"
    assert versions(Corpus(steps=["simplified"]))["simplified"].startswith("1 with OpenCC ")


OFFERS = [
    "注册送彩金，网上赌场，真人荷官在线发牌，首存送彩金，欢迎加入！",
    "北京赛车pk10必中计划群，时时彩计划免费领取，加微信。",
    "成人电影免费看，无码高清，同城约炮，点击进入。",
    "长期出售冰毒，货到付款，迷药、听话水均有现货。",
    "气枪专卖，仿真枪货到付款，弹药出售，支持验货。",
    "代开发票，办证刻章，信用卡套现，诚信经营。",
    "刷单兼职，日赚千元，不收押金，名额有限。",
    "本店供应迷药、枪支，价格面议，诚信为本。",
    "骚货上门，颜射内射，淫乱派对，今晚开始。",
    "Get your online casino bonus today: free spins no deposit, live dealer casino.",
    "Watch free porn, xxx videos and live sex cam shows. Nude cams every night.",
    "Buy cocaine online with discreet shipping. Mail order drugs, no prescription needed.",
    "Fake passport for sale. Counterfeit money, stolen credit cards and cc dumps.",
    "Call girls and escort service in your town, hookup tonight with hot singles in your area.",
    "This guide shows how to make a bomb and build a pipe bomb at home from simple parts.",
]
ORDINARY = [  # history, medicine, law, and the everyday
    "鸦片战争是一八四〇年至一八四二年英国对中国发动的战争，清朝战败，签订了南京条约。",
    "林则徐在虎门销毁鸦片，道光皇帝下令严禁吸食与贩卖鸦片。",
    "南京大屠杀遇难同胞纪念馆每年举行公祭，悼念在战争中死去的人们。",
    "患者因乳房肿块就诊，病理诊断为乳腺癌，医生建议手术治疗，术后护理十分重要。",
    "海洛因和吗啡都来自罂粟，临床上吗啡用于治疗剧烈疼痛，剂量须严格控制。",
    "药理学课上，医生讲了鸦片、吗啡、海洛因、可卡因和大麻的依赖性，以及患者自杀、性病和流产的风险。",
    "流产后的患者应当注意休息，如有感染症状应及时到医院诊断和治疗。",
    "被告因贩卖毒品罪被法院判决有期徒刑，检察机关认为量刑适当。",
    "警方依法查处了一处赌场，涉案人员因赌博罪被起诉。",
    "广岛在一九四五年八月遭受原子弹袭击，历史学家至今仍在争论这一决定。",
    "奴隶社会是历史上的一种社会形态，奴隶主占有奴隶。",
    "精神科医生说，自杀干预的第一步是倾听，患者需要治疗与陪伴。",
    "今天下午我们在老地方喝牛奶，聊了聊孩子的学习和性格。",
    "这部小说讲的是一个妓女的一生，写尽了民国时期上海的历史。",
    "The Opium Wars were fought in the nineteenth century between Britain and the Qing dynasty.",
    "Breast cancer is the most common cancer among women; treatment depends on the stage at diagnosis.",
    "Morphine is an opiate used in hospital medicine for severe pain; the dose depends on the patient.",
    "Historians describe the massacre as one of the worst of the war; the museum keeps a list of names.",
    "The defendant was convicted by the court of selling heroin and cocaine, police said.",
    "The clinical report covers heroin, cocaine, morphine, cannabis and opium use, syphilis, gonorrhea and suicide.",
    "Syphilis spread through Europe at the end of the fifteenth century, and physicians had no treatment.",
    "Suicide prevention begins with listening; doctors ask patients about symptoms of depression.",
    "The chicken breast is done when its juices run clear. Serve it with rice and a little lemon.",
    "The slave trade was abolished by parliament in 1807, after years of petitions.",
    "A bomb squad was called to the museum; it turned out to be a bath bomb in a bag.",
    "He lived in Scunthorpe and later in Essex, and worked for the gambling commission.",
]


def test_offers_go_and_history_medicine_and_law_pass() -> None:
    block = after([*OFFERS, *ORDINARY], steps=["sensitive"])
    gone = [one.verdict is not None for one in block]
    assert sum(gone[: len(OFFERS)]) >= 0.9 * len(OFFERS), [one.text for one in block[: len(OFFERS)] if not one.verdict]
    assert [one.text for one in block[len(OFFERS) :] if one.verdict] == []
    first = block[0].verdict
    assert first is not None and (first.rule, first.limit, first.note) == ("sensitive words", 3.0, "首存送彩金")


def test_words_are_graded_and_a_text_around_them_counts() -> None:
    known = words()
    assert weighed("鸦片", known) == (0.5, "鸦片")
    assert weighed("鸦片战争", known) == (0.0, "")
    assert weighed("冰毒", known) == (2.0, "冰毒")
    assert weighed("冰毒 冰毒 冰毒 冰毒 冰毒", known) == (6.0, "冰毒")  # thrice at most
    assert weighed("冰毒，警方依法查处", known) == (0.5, "冰毒")
    assert weighed("冰毒" + "。" * 1998, known) == (1.0, "冰毒")
    assert weighed("unporny; sporno", known)[0] == 0.0 == weighed("PORNO1", known)[0]
    assert weighed("free PORN!", known)[0] == 4.0
    assert weighed("鸦片 大麻 海洛因 吗啡 可卡因 妓女", known)[0] == 2.0  # all of grade 1 together


def test_a_lexicon_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"3": ["绝密"], "exceptions": ["绝密飞行"]}), "utf-8")
    block = after(["这是绝密。", "看过绝密飞行。"], steps=["sensitive"], lexicon=str(path))
    assert [one.verdict is None for one in block] == [False, True]
    own, plain = Corpus(steps=["sensitive"], lexicon=str(path)), Corpus(steps=["sensitive"])
    assert versions(own) != versions(plain)
    for content in ('{"4": ["x"]}', "[", '{"1": [2]}'):
        bad = tmp_path / "bad.json"
        bad.write_text(content)
        with pytest.raises(
            InputError, match=r"corpus\.lexicon=.*bad\.json: must be JSON as in data/words/graded\.json"
        ):
            chain(Corpus(steps=["sensitive"], lexicon=str(bad)))
    with pytest.raises(InputError, match=r"corpus\.lexicon=/no: No such file"):
        chain(Corpus(steps=["sensitive"], lexicon="/no"))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a text of Han characters is Chinese whatever a model says",
        "trainers/clean/language.py",
        'if by_script == "zh":',
        "if False:",
        "test_a_language_is_told",
    ),
    (
        "languages that are not wanted go",
        "trainers/clean/language.py",
        "if wanted and document.language not in wanted:",
        "if False:",
        "test_only_the_languages_that_are_wanted_stay",
    ),
    (
        "Japanese is not simplified",
        "trainers/clean/language.py",
        "if not han or len(KANA.findall(text)) * 10 >= han:",
        "if not han:",
        "test_traditional_characters_become_simplified_ones_and_japanese_stays",
    ),
    (
        "words of history and medicine weigh nothing there",
        "trainers/clean/sensitive.py",
        "IN_CONTEXT if len(fields) >= CONTEXTS else WEIGHTS",
        "WEIGHTS",
        "test_words_are_graded_and_a_text_around_them_counts",
    ),
    (
        "words of history and medicine reject nothing by themselves",
        "trainers/clean/sensitive.py",
        " - max(0.0, common - MOST_OF_GRADE_1)",
        "",
        "test_offers_go_and_history_medicine_and_law_pass",
    ),
    (
        "a longer exception takes its word along",
        "trainers/clean/sensitive.py",
        "MatchKind.LeftmostLongest",
        "MatchKind.Standard",
        "test_words_are_graded_and_a_text_around_them_counts",
    ),
    (
        "an English word is found as a word",
        "trainers/clean/sensitive.py",
        "if entry.isascii() and not _alone(lower, start, end):",
        "if False:",
        "test_words_are_graded_and_a_text_around_them_counts",
    ),
]
