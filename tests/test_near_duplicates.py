"""When two texts are the same or nearly so, in any script, and what happens where one template fills a class."""

import random
from collections import Counter

import numpy as np
import pytest
from test_data import task_of, write_rows

from fintune.data import audit
from fintune.data import near_duplicates as near_module
from fintune.data.load import load_data
from fintune.data.near_duplicates import near_pairs
from fintune.data.same_text import normalise
from fintune.data.splits import cut
from fintune.errors import UserError
from fintune.scoring.suspects import all_rows, contradictions, folds

DIFFERENT = [
    ("🚀🚀🚀", "📉"),
    ("💎🙌", "💩🩸"),
    ("🚀🚀🚀", "🚀"),
    ("!!!", "???"),
    ("$", "€"),
    ("🔥", "🚨"),
    ("https://t.co/one", "https://t.co/two"),
    ("Alder +5 %", "Alder -5 %"),
    ("Alder +5 %", "Alder −5 %"),
    ("Alder up $5", "Alder up €5"),
    ("loss of -$3 a share", "loss of $3 a share"),
    ("Alder ▲ 3 points", "Alder ▼ 3 points"),
    ("Alder 🐂 today", "Alder 🐻 today"),
    ("rated BBB+ by Birch", "rated BBB- by Birch"),
    ("$ELM moves", "ELM moves"),
    ("रुपया बढ़ा", "रुपया बढ़ी"),  # vowels are marks
    ("ราคาขึ้น", "ราคาขน"),
    ("résultat", "resultat"),
    ("Alder up 5%", "Alder up 5"),
    ("Alder up 5%", "Alder up 5‰"),
    ("Alder at 1,5", "Alder at 15"),
    ("Alder up .5 points", "Alder up 5 points"),
    ("EPS of ($0.05)", "EPS of $0.05"),
    ("EPS of $(0.05)", "EPS of $0.05"),
    ("EPS (0.05)", "EPS 0.05"),
    ("Alder -US$5 bn", "Alder US$5 bn"),
    ("Alder -EUR5 mn", "Alder EUR5 mn"),
    ("Alder ‑5 points", "Alder 5 points"),  # a hyphen that does not break
    ("Alder ﹣5 points", "Alder 5 points"),
    ("Alder (-) after results", "Alder after results"),
    ("Alder :)", "Alder :("),
    ("holding Alder :-)", "holding Alder :-("),
    ("公告https://t.co/a1净利润大增", "公告https://t.co/a1净利润大跌"),  # a link ends where no space does
    ("Alder https://t.co/a1🚀", "Alder https://t.co/a1📉"),
    ("كَتَبَ", "كُتِبَ"),
]
SAME = [
    ("Profit ROSE, again!", "profit rose again https://t.co/x"),
    ("🚀 🚀🚀", "🚀🚀🚀"),
    ("Alder ❤️", "alder ❤"),  # with and without the mark that asks for colour
    ("cafe\u0301 sales", "café sales"),
    ("ＡＬＤＥＲ　＋５％", "Alder +5 %"),
    ("Alder® | sales ~ up 🚨", "alder sales up"),
    ("2019-20 well-known - said Alder", "2019 20 well known said alder"),
    ("up 5%-10%, says Alder (again)", "up 5% 10% says Alder again"),
    ("AT&amp;T &gt; Elm &#39;s &quot;best&quot;", "AT&T > Elm 's “best”"),
    ("Alder pic.twitter.com/a1 HTTPS://T.CO/B2 看www.c.com/涨", "Alder 看 涨"),
    ("El\u00adm up\u200b by\ufeff 5\u200f", "Elm up by 5"),
    ("می\u200cخواهم", "میخواهم"),
    ("البـــنك", "البنك"),
    ("ﾄﾖﾀ自動車", "トヨタ自動車"),
    ("Alder 👍🏽", "Alder 👍"),
    ("Alder .5 (-0.05)", "Alder 0.5 (0.05)"),
]


@pytest.mark.parametrize("one,other", DIFFERENT)
def test_what_changes_the_meaning_makes_another_text(one, other):
    assert normalise(one) != normalise(other)
    assert normalise(one) and normalise(other)


@pytest.mark.parametrize("one,other", SAME)
def test_what_does_not_makes_none(one, other):
    assert normalise(one) == normalise(other)


NAMES = {
    "English": ("Alder Birch Cedar Dogwood Elm Fir", "{} says its net profit for the third quarter rose {} percent"),
    "Chinese": (
        "白杨股份 桦木科技 雪松集团 茱萸药业 榆树银行 冷杉能源",
        "{}公告称今年第三季度归属于上市公司股东的净利润同比增长{}%",
    ),
    "Japanese": ("ハンノキ シラカバ スギ ミズキ ニレ モミ", "{}の第3四半期の純利益は前年同期比{}%増加したと発表した"),
    "Thai": ("อัลเดอร์ เบิร์ช ซีดาร์ เอล์ม เฟอร์ เมเปิล", "บริษัท{}รายงานกำไรสุทธิไตรมาสสามเพิ่มขึ้น{}%จากปีก่อนหน้า"),
    "Korean": (
        "오리나무 자작나무 삼나무 층층나무 느릅나무 전나무",
        "{} 3분기 순이익이 지난해 같은 기간보다 {}% 늘었다고 밝혔다",
    ),
    "Hindi": ("एल्डर बर्च सीडर एल्म फर मेपल", "{} का तीसरी तिमाही का शुद्ध लाभ पिछले साल से {} प्रतिशत बढ़ा"),
    "mixed": (
        "Alder Birch Cedar Elm Fir Maple",
        "{} Inc. 发布Q3财报：净利润同比增长{}%，超出分析师预期 (via Reuters)",
    ),
}


@pytest.mark.parametrize("names,sentence", NAMES.values(), ids=NAMES)
def test_one_sentence_about_six_companies_is_one_cluster_in_every_script(names, sentence):
    texts = [sentence.format(name, 3 * number) for number, name in enumerate(names.split())]
    assert len(set(near_pairs(texts).clusters())) == 1


OTHERS = {
    "Chinese": [
        "央行宣布下调存款准备金率",
        "白杨股份三季度净利润大增",
        "公司董事会通过回购股份议案",
        "原油价格周三收盘上涨",
    ],
    "Japanese": ["日銀は金融政策を維持した", "スギの純利益は増加した", "円相場は一時下落した", "自社株買いを発表した"],
    "Thai": ["ธนาคารกลางคงอัตราดอกเบี้ย", "ราคาน้ำมันปรับขึ้นแรง", "หุ้นไทยปิดตลาดร่วงลง"],
    "emoji": ["🚀🚀🚀", "📉", "💎🙌", "😭😭", "🐂🐂🙌", "🐻😱😭"],
    "links": ["https://t.co/a1", "https://t.co/a2"],
    "punctuation": ["!!!", "...", "?"],
}


@pytest.mark.parametrize("texts", OTHERS.values(), ids=OTHERS)
def test_other_texts_are_no_near_duplicates(texts):
    assert len(set(near_pairs(texts).clusters())) == len(texts)


def made_up(count: int, seed: int = 0) -> list[str]:
    """Texts of 12 made-up words; of five each, four repeat an earlier one with up to half of the words changed."""
    rng, texts = random.Random(seed), []
    for number in range(count):
        words = rng.choice(texts).split() if number % 5 else [f"{rng.choice('abcdefgh')}word"] * 12
        changed = rng.sample(range(12), rng.randrange(7) if number % 5 else 12)
        texts.append(
            " ".join(f"{rng.choices('abcdefghijkl', k=4)}" if at in changed else w for at, w in enumerate(words))
        )
    return [text.replace("'", "").replace(", ", "").strip("[]") for text in texts]


def word_pairs(text: str) -> set[tuple[str, str]]:
    words = normalise(text).split()
    return set(zip(["^", *words], [*words, "$"], strict=True))


@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.9])
def test_the_search_is_that_of_all_pairs(threshold, monkeypatch):
    texts = made_up(150)
    texts += texts[:10]
    parts = [word_pairs(text) for text in texts]
    expected = {
        (one, other)
        for one in range(len(texts))
        for other in range(len(texts))
        if one != other and len(parts[one] & parts[other]) >= threshold * len(parts[one] | parts[other])
    }
    assert len(expected) > 20
    for block in (near_module.BLOCK, 50):
        monkeypatch.setattr(near_module, "BLOCK", block)
        found = near_pairs(texts, threshold)
        assert found.exact and set(zip(*(ends.tolist() for ends in found.of_texts()), strict=True)) == expected
    chosen = np.zeros(len(texts), dtype=bool)
    chosen[:5] = True
    near = {one for one, other in expected if other < 5} | set(range(5))
    assert set(np.flatnonzero(found.near(chosen)).tolist()) == near


def test_the_index_invents_no_pair_and_misses_few(monkeypatch):
    texts = made_up(3000)
    exact = near_pairs(texts)
    monkeypatch.setattr(near_module, "EXACT", 0)
    index = near_pairs(texts)
    every, found = (set(zip(*pairs.ends.tolist(), strict=True)) for pairs in (exact, index))
    assert exact.exact and not index.exact and len(every) > 500
    assert found <= every
    assert len(found) >= 0.95 * len(every)


def test_many_headlines_of_one_template_cost_no_memory_of_their_square():
    names = [
        f"{'abcdefghij'[i % 10] * 3}{'klmnopqrst'[i // 10 % 10] * 3}{'uvwxyzabcd'[i // 100 % 10] * 3}"
        for i in range(1000)
    ]
    texts = [
        f"{name} says its net profit for the third quarter of the year rose by much {kind}"
        for name in names
        for kind in names[:20]
    ]
    found = near_pairs(texts)
    assert not found.exact
    assert found.ends.shape[1] < 300 * len(texts)
    assert len(set(found.clusters())) == 1


def ratings(kinds: dict[str, str], each: int) -> str:
    """A file of rows, each kind of which is one template."""
    rng = random.Random(0)
    brokers, firms = (
        ("Rowe", "Barrow", "Park", "Wells", "Quay"),
        [f"{a}{b}" for a in "BCDFGH" for b in ("alder", "elm", "ash", "oak")],
    )
    rows = [
        f"{rng.choice(brokers)} {sentence.format(rng.choice(firms), rng.randrange(9, 400))},{label}"
        for label, sentence in kinds.items()
        for _ in range(each)
    ]
    return "\n".join(["text,label", *rows, ""])


TEMPLATES = {
    "one template a class": {
        "Up": "Upgrades {} to Buy; Raises Price Target to ${}",
        "Down": "Downgrades {} to Sell; Lowers Price Target to ${}",
        "Up or down": "Maintains Neutral on {}; Announces ${} Price Target",
    },
    "numbers alone differ": {
        "Up": "sees profit of its third quarter up {} to {} mn",
        "Down": "sees loss of its third quarter down {} to {} mn",
        "Up or down": "keeps outlook for its third quarter of {} at {} mn",
    },
    "one template for all": {
        label: "Rates {} at a price target of ${} " + label for label in ("Up", "Down", "Up or down")
    },
}


@pytest.mark.parametrize("kinds", TEMPLATES.values(), ids=TEMPLATES)
def test_a_cluster_cannot_take_a_class_and_the_rows_on_both_sides_are_counted(task_folder, kinds):
    write_rows(task_folder, ratings(kinds, 60))
    task = task_of(task_folder)
    data = load_data(task)
    for split in ("validation", "test"):
        assert all(3 <= Counter(data.splits[split]["label"])[label] <= 9 for label in range(3))
    found = audit.audit(task, data)
    assert found["cut"]["clusters"] >= 1 and 0 < found["cut"]["apart"] <= found["cut"]["rows"] <= 180
    assert found["leaked"]["near"] > 0.5 * len(data.splits["test"])  # whole clusters count, not their parts
    assert found["leaked"]["normalised"] == 0
    said = audit.lines(found)[3]
    assert "more than twice a split's share of a class" in said and f"{found['cut']['apart']} of the rows" in said
    assert len(set(folds(task, all_rows(data)))) == 5


def test_clusters_that_leave_a_class_enough_rows_stay_whole():
    rows = [
        {"text": f"{'abcdefghij'[i % 10] * 4} says profit rose by a lot this year {i}", "label": i % 2}
        for i in range(40)
    ]
    rows += [{"text": " ".join(f"{'klmnop'[i % 6]}{i}{part}" for part in "qrstuv"), "label": i % 2} for i in range(40)]
    clusters = np.array([0] * 40 + list(range(1, 41)))
    assert (cut(rows, clusters, [0.1, 0.1]) == clusters).all()
    groups = cut(rows[:48], clusters[:48], [0.1, 0.1])  # 4 of 24 rows a class are too few for 0.2 of them
    assert len(set(groups[:40])) > 1 and len(set(groups[40:])) == 8


def test_one_text_that_fills_a_class_is_refused_with_the_reason(task_folder):
    write_rows(
        task_folder, "text,label\n" + "same words,Up\n" * 40 + "".join(f"x{'y' * i} z,Down\n" for i in range(40))
    )
    with pytest.raises(UserError, match=r"no row of class Up in the validation split .*repeats of a text stay in one"):
        load_data(task_of(task_folder, labels=["Up", "Down"]))


def test_texts_of_emoji_alone_neither_leak_nor_repeat(task_folder):
    signs = "🚀🐂🙌💎🐻📉😱💩🩸😭🤑🔻"
    texts = [f"{a}{b}" for a in signs for b in signs]
    rows = [f"{text},{('Up', 'Down', 'Up or down')[number % 3]}" for number, text in enumerate(texts)]
    write_rows(task_folder, "\n".join(["text,label", *rows[:100], ""]))
    (task_folder / "data/test.csv").write_text("\n".join(["text,label", *rows[100:], ""]))
    task = task_of(task_folder, files={"train": "toy.csv", "test": "test.csv"})
    data = load_data(task)
    assert data.clean.count(False) == 0
    found = audit.audit(task, data)
    assert found["repeats"]["normalised"] == found["leaked"]["near"] == found["odd"]["nothing but links"] == 0


def test_signs_that_differ_are_no_contradiction():
    texts = [
        "Alder shares move +5 % today",
        "Alder shares move -5 % today",
        "Elm shares ▲ today",
        "Elm shares ▼ today",
    ]
    texts += ["Oak sells its mill in town", "Oak sells its mill in town!"]
    rows = [{"text": text, "label": number % 2, "split": "train"} for number, text in enumerate(texts)]
    assert set(contradictions(rows, np.zeros(6), np.full(6, 0.5))) == {4}
