"""The lexicon finds the same words in English and Japanese, and names what it does not know."""

import pytest

from framepack.conditioning.lexicon import ENGLISH, JAPANESE, SLOT_OF, SLOTS, VOCABULARY, parse

SAME = [
    (
        "A red ball moves to the right over grass at sunset.",
        "夕焼けの草原の上を、赤いボールが右へ動く。",
        ("ball", "red", "sunset", "grass", "right"),
    ),
    (
        "a yellow star falls slowly from the night sky over the sea",
        "夜の海で黄色い星がゆっくり下へ落ちる",
        ("star", "yellow", "night", "sea", "down", "slowly"),
    ),
    (
        "While the camera pans left, a blue box glides quickly from left to right above the city by day",
        "カメラが左へパンしながら、昼の街で青い箱が左から右へ速く動く",
        ("box", "blue", "day", "city", "right", "fast", "pan-left"),
    ),
    (
        "purple diamond, still, dawn, snow",
        "朝の雪原で紫のひし形が止まっている",
        ("diamond", "purple", "dawn", "snow", "still"),
    ),
]


@pytest.mark.parametrize(("english", "japanese", "words"), SAME)
def test_both_languages_give_the_same_words(english, japanese, words):
    assert parse(english).words == words == parse(japanese).words
    assert parse(english).unknown == () == parse(japanese).unknown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the orange ball", ("ball", "orange")),
        ("a red ball under an orange sky", ("ball", "red", "sunset")),
        ("a blue heart under a blue sky over the blue sea", ("heart", "blue", "day", "sea")),
        ("a rose heart", ("heart", "pink")),
        ("the heart rose over the dunes", ("heart", "desert", "up")),
        ("the ball moves to the right", ("ball", "right")),
        ("the ball moves from right to left", ("ball", "left")),
        ("ball left-to-right", ("ball", "right")),
        ("the ball is still", ("ball", "still")),
        ("the ball still moves left", ("ball", "left")),
        ("the ball does not move", ("ball", "still")),
        ("still camera, ball moving up", ("ball", "up")),
        ("a star on a starry night", ("star", "night")),
        ("camera right, ball left", ("ball", "left", "pan-right")),
        ("ＲＥＤ　ＢＡＬＬ", ("ball", "red")),
        ("赤い ball が left へ", ("ball", "red", "left")),
        ("海の上のハート", ("heart", "sea")),
        ("", ()),
    ],
)
def test_ambiguous_words(text, words):
    assert parse(text).words == words


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("a dragon moves left", ("dragon",)),
        ("red ball, teapot, teapot", ("teapot",)),
        ("犬が右へ動く", ("犬",)),
        ("ねこが右へ動く", ("ねこ",)),
        ("ドラゴンが海の上を飛ぶ", ("ドラゴン",)),
    ],
)
def test_unknown_words_are_named(text, unknown):
    assert parse(text).unknown == unknown


def test_order_does_not_matter_for_words_in_slots():
    assert parse("sunset grass right red ball").words == parse("ball, red, right, grass, sunset").words


def test_a_second_word_for_a_slot_is_reported():
    parsed = parse("a red ball and a green box")
    assert parsed.words == ("ball", "red")
    assert parsed.surplus == ("box", "green")


def test_every_phrase_stands_for_a_word_of_the_vocabulary():
    assert len(set(VOCABULARY)) == len(VOCABULARY) == sum(map(len, SLOTS.values()))
    for word in {*ENGLISH.values(), *JAPANESE.values()}:
        assert word in SLOT_OF or word == "" or word.startswith("<")
    for word in VOCABULARY:
        assert word in ENGLISH.values() or word.startswith("pan-")
        assert word in JAPANESE.values() or word.startswith("pan-")
