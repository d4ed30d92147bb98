"""The words that the bundled model knows, in English and Japanese.

A prompt is a set of words in slots (shape, colour, sky, ground, direction, speed, camera). `parse`
finds them in free text: order does not matter, glue words are dropped, and words it does not know
are named, so that a caller can warn. Speed and camera have no word for their usual value.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

SLOTS: dict[str, tuple[str, ...]] = {
    "shape": ("ball", "box", "triangle", "star", "heart", "diamond", "cross"),
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    "sky": ("day", "dawn", "sunset", "night", "cloudy"),
    "ground": ("grass", "desert", "snow", "sea", "lavender", "city"),
    "direction": ("left", "right", "up", "down", "still"),
    "speed": ("slowly", "fast"),
    "camera": ("pan-left", "pan-right"),
}
"""Canonical words by slot; the order of slots is the order of `ParsedPrompt.words`."""

VOCABULARY: tuple[str, ...] = tuple(word for words in SLOTS.values() for word in words)
SLOT_OF: dict[str, str] = {word: slot for slot, words in SLOTS.items() for word in words}

# A phrase stands for one word; phrases of several words are tried first, so that "blue sky" is a
# time of day and not a colour. "<pan>" marks the camera, "" is a phrase to drop.
ENGLISH: dict[str, str] = {}
for _word, _phrases in {
    "ball": "ball balls circle circles sphere orb disc disk round|one",
    "box": "box boxes square squares cube cubes block crate rectangle",
    "triangle": "triangle triangles triangular pyramid",
    "star": "star stars",
    "heart": "heart hearts",
    "diamond": "diamond diamonds rhombus lozenge gem",
    "cross": "cross crosses plus plus|sign",
    "red": "red crimson scarlet",
    "orange": "orange tangerine",
    "yellow": "yellow golden gold lemon",
    "green": "green emerald lime",
    "blue": "blue azure navy sky|blue sea|blue",
    "purple": "purple violet magenta",
    "pink": "pink rose|coloured rose|colored",
    "white": "white snow|white ivory",
    "day": "day daytime daylight noon midday sunny afternoon blue|sky bright|sky clear|sky clear|day "
    "sunshine",
    "dawn": "dawn daybreak sunrise morning early|morning pink|sky sun|rises rising|sun",
    "sunset": "sunset dusk evening twilight orange|sky red|sky golden|hour golden|sky setting|sun sun|sets "
    "late|afternoon sunset|sky evening|sky",
    "night": "night nighttime midnight moonlight moonlit moon starry starlight dark|sky night|sky starry|sky "
    "starry|night under|the|stars night|time",
    "cloudy": "cloudy overcast clouds clouded grey|sky gray|sky cloudy|sky cloudy|day grey|day gray|day "
    "overcast|sky overcast|day gloomy",
    "grass": "grass grassland meadow meadows field fields lawn prairie pasture countryside green|hills "
    "green|field green|fields green|meadow green|grass grassy hills|of|grass",
    "desert": "desert dunes dune sand sandy sahara",
    "snow": "snow snowy snowfield winter ice icy snowy|mountains snowy|hills white|snow",
    "sea": "sea ocean water waves wave lake blue|sea blue|ocean seaside beach coast",
    "lavender": "lavender lavenders flowers lavender|field lavender|fields purple|field purple|fields "
    "field|of|lavender fields|of|lavender flower|field purple|hills",
    "city": "city town skyline buildings building skyscrapers urban downtown street",
    "left": "left leftward leftwards",
    "right": "right rightward rightwards",
    "up": "up upward upwards rise rises rising climb climbs climbing ascend ascends ascending top rose",
    "down": "down downward downwards fall falls falling drop drops dropping descend descends descending sink "
    "sinks sinking bottom",
    "still": "still motionless stationary unmoving stays stay rests resting rest stands standing waits "
    "hovers "
    "not|moving not|move doesn|t|move stopped stops stop stays|still stays|put static immobile",
    "slowly": "slowly slow gently gradually calmly creeps creeping leisurely",
    "fast": "fast quickly quick rapidly rapid swiftly swift speedily races racing rushes dashes zooms",
    "<pan>": "camera pan pans panning panned",
    "": "still|camera static|camera fixed|camera steady|camera camera|still camera|is|still camera|static "
    "camera|is|static camera|stays|still camera|fixed",
}.items():
    for _phrase in _phrases.split():
        ENGLISH[_phrase] = _word

_GLUE_TEXT = (
    "a an the this that it its there is are be being s of to at in on into onto over under above below "
    "across "
    "along behind front near by with and while as from towards toward through during for before after then "
    "moves move moving moved motion goes go going travels travel travelling traveling floats float floating "
    "glides glide gliding slides slide sliding drifts drift drifting flies fly flying rolls roll rolling "
    "heads "
    "heading passes pass passing runs running crosses|the does do did not t doesn one single big large small "
    "little bright dark light colored coloured color colour shape shaped object scene video picture image "
    "view "
    "side direction sky skies hill hills mountain mountains land landscape ground background sun speed time "
    "very constantly steadily directly straight way out off screen frame has seen beautiful simple flat "
    "outlined animation clip footage shot"
)
GLUE = frozenset(_GLUE_TEXT.split())

JAPANESE: dict[str, str] = {}
for _word, _phrases in {
    "ball": "ボール 球 玉 円 丸 丸い まる たま サークル",
    "box": "箱 四角 四角形 正方形 四角い ボックス はこ 立方体",
    "triangle": "三角 三角形 三角の さんかく",
    "star": "星 星形 星型 ほし スター",
    "heart": "ハート ハート形 ハート型",
    "diamond": "ひし形 菱形 ダイヤ ダイヤモンド ひしがた",
    "cross": "十字 十字形 十字架 プラス 十字型 クロス",
    "red": "赤 赤い 赤色 あかい レッド 真っ赤 真っ赤な",
    "orange": "オレンジ オレンジ色 橙 橙色 だいだい色",
    "yellow": "黄色 黄色い きいろ イエロー 黄 金色",
    "green": "緑 緑色 みどり グリーン",
    "blue": "青 青い 青色 あおい ブルー 水色",
    "purple": "紫 紫色 むらさき パープル",
    "pink": "ピンク ピンク色 桃色 薔薇色 ばら色",
    "white": "白 白い 白色 しろい ホワイト 真っ白 真っ白な",
    "day": "昼 昼間 日中 青空 青い空 晴れ 晴れた 晴天 真昼 お昼",
    "dawn": "夜明け 朝 朝焼け 早朝 日の出 明け方",
    "sunset": "夕焼け 夕焼け空 夕方 夕日 夕陽 夕暮れ 日没 夕暮れ時 赤い空 オレンジの空 日暮れ",
    "night": "夜 夜空 真夜中 月夜 星空 夜中 月 夜景",
    "cloudy": "曇り 曇り空 くもり 曇った 曇天 雲 灰色の空 くもり空",
    "grass": "草原 草 芝生 野原 牧場 草地 緑の丘 くさはら 緑の草原",
    "desert": "砂漠 砂 砂丘 さばく 砂浜",
    "snow": "雪 雪原 雪山 雪景色 ゆき 冬",
    "sea": "海 海辺 海上 波 大海原 うみ 湖 青い海 水面",
    "lavender": "ラベンダー ラベンダー畑 花畑 紫の丘",
    "city": "街 町 都会 都市 街並み ビル ビル街 まち 市街",
    "left": "左 左へ 左に 左側 左方向 ひだり 左向き",
    "right": "右 右へ 右に 右側 右方向 みぎ 右向き",
    "up": "上 上へ 上に 上方向 上昇 昇る 昇って のぼる 上がる 上がって 上方 うえ",
    "down": "下 下へ 下に 下方向 下降 落ちる 落ちて 降りる 降りて 下がる 下がって 下方 した",
    "still": "止まる 止まって 止まった とまって 静止 停止 動かない 動かず じっと 動いていない",
    "slowly": "ゆっくり ゆっくりと 遅く 遅い のろのろ 低速",
    "fast": "速く 速い 早く 素早く すばやく 高速 急いで 急速 速やか",
    "<pan>": "カメラ パン",
    "<from-left>": "左から",
    "<from-right>": "右から",
    "<from-up>": "上から",
    "<from-down>": "下から",
    # Places ("over the sea", "under the sky") are no directions, and glue carries no meaning here.
    "": "の上を の上で の上に の上の の下を の下で の下に 上空 空 動く 動き 動いて 動かす 動いた 移動 "
    "進む 進んで "
    "進み 滑る 滑って 滑り 流れる 流れて 飛ぶ 飛んで 行く 通る 横切る 転がる 転がって 浮かぶ 浮かんで 向かう "
    "向かって 向け 丘 山 地面 背景 景色 風景 方向 方 側 大きな 小さな 大きい 小さい 一つ 形 色 型 映像 "
    "動画 絵 "
    "静かに 時 中 速度 スピード 空中 太陽 "
    "が は を に へ で と の も や から まで より な だ です ます する して した している いる いて ある "
    "あって れる "
    "られ られる れば ながら つつ そして また その この あの ている てい てる いく いった ゆく し て た "
    "り る う く "
    "こと もの まま そのまま 方へ 方に ほう ほうへ ほうに ひとつ",
}.items():
    for _phrase in _phrases.split():
        JAPANESE[_phrase] = _word

_LONGEST_JAPANESE = max(map(len, JAPANESE))
_LONGEST_ENGLISH = max(phrase.count("|") + 1 for phrase in ENGLISH)
_CLAUSE_WORDS = frozenset({"and", "while", "as", "then", "with"})
_CLAUSE_ENDS = frozenset({"ながら", "つつ"})
_DIRECTIONS = frozenset(SLOTS["direction"])
_SCANNER = re.compile(r"[a-z]+|[\u3040-\u30fa\u30fc-\u30ff\u3400-\u9fff々〆ヶ]+|[0-9]+|\S")


@dataclass(frozen=True)
class ParsedPrompt:
    """What `parse` found in a text.

    Attributes:
        words: canonical words in order of slots, at most one for a slot.
        unknown: words of the text that are not in the lexicon, in order of appearance.
        surplus: canonical words dropped because their slot was already filled.
    """

    words: tuple[str, ...]
    unknown: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()


def parse(text: str) -> ParsedPrompt:
    """Find the lexicon's words in an English or Japanese text, or one that mixes both.

    The colour next before the shape wins over other colours; in every other slot the first word
    wins, except that "still" gives way to a direction ("still moves left").
    """
    tokens = _resolve_camera(_tokens(unicodedata.normalize("NFKC", text).lower()))
    unknown = [token[1:] for token in tokens if token.startswith("?")]
    found: dict[str, list[str]] = {}
    colour = None
    for token in tokens:
        slot = SLOT_OF.get(token)
        if slot is None:
            continue
        if slot == "colour" and "shape" not in found:
            colour = token
        words = found.setdefault(slot, [])
        if token not in words:
            words.append(token)
    surplus: list[str] = []
    words_out: list[str] = []
    for slot in SLOTS:
        words = found.get(slot, [])
        if not words:
            continue
        best = words[0]
        if slot == "colour" and colour is not None and "shape" in found:
            best = colour
        if slot == "direction" and best == "still" and len(words) > 1:
            best = words[1]
        words_out.append(best)
        surplus += [word for word in words if word != best]
    return ParsedPrompt(tuple(words_out), tuple(dict.fromkeys(unknown)), tuple(surplus))


def _tokens(text: str) -> list[str]:
    """Canonical words, camera marks "<pan>", clause ends "<end>", and unknown words as "?word"."""
    tokens: list[str] = []
    english: list[str] = []
    for piece in [*_SCANNER.findall(text), ""]:
        if piece and piece.isascii() and piece.isalpha():
            english.append(piece)
        elif piece in {"-", "'", "’"}:
            continue
        else:
            tokens += _english(english)
            english = []
            if piece and not piece.isascii() and (piece[0].isalnum() or piece[0] == "々"):
                tokens += _japanese(piece)
            elif piece and not piece.isdigit():
                tokens.append("<end>")
    return tokens


def _english(words: list[str]) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(words):
        for length in range(min(_LONGEST_ENGLISH, len(words) - at), 0, -1):
            phrase = "|".join(words[at : at + length])
            if phrase in ENGLISH:
                token = ENGLISH[phrase]
                following = ENGLISH.get(words[at + length]) if at + length < len(words) else None
                if phrase == "rose" and SLOT_OF.get(following or "") == "shape":
                    token = "pink"  # "a rose heart" is a colour, "the heart rose" is a motion
                tokens += [token] if token else []
                at += length
                break
        else:
            word = words[at]
            if word in {"from", "to"}:
                tokens.append(f"<{word}>")
            elif word in _CLAUSE_WORDS:
                tokens.append("<end>")
            elif word not in GLUE:
                tokens.append("?" + word)
            at += 1
    return _drop_origins(tokens)


def _drop_origins(tokens: list[str]) -> list[str]:
    """Drop where a motion comes from: "from left to right" and "left to right" both mean right."""
    kept: list[str] = []
    for at, token in enumerate(tokens):
        before = tokens[at - 1] if at else ""
        after = tokens[at + 1 : at + 3]
        leads = len(after) == 2 and after[0] == "<to>" and after[1] in _DIRECTIONS
        if token in {"<from>", "<to>"} or (token in _DIRECTIONS and (before == "<from>" or leads)):
            continue
        kept.append(token)
    return kept


def _japanese(text: str) -> list[str]:
    """Longest match from the left; what matches nothing gathers into an unknown word."""
    tokens: list[str] = []
    strange, at, after_kanji = "", 0, False

    def flush() -> None:
        nonlocal strange
        # One or two hiragana behind a kanji are an inflection, not a word of their own.
        kana = bool(re.fullmatch(r"[\u3040-\u309fー]*", strange))
        if strange and not (kana and (len(strange) < 2 or after_kanji)):
            tokens.append("?" + strange)
        strange = ""

    while at < len(text):
        for length in range(min(_LONGEST_JAPANESE, len(text) - at), 0, -1):
            phrase = text[at : at + length]
            # A single kana inside an unknown word is more likely a part of it than a particle.
            inside = strange and length == 1 and phrase in "しうくりるた" and at + 1 < len(text)
            if phrase in JAPANESE and not inside:
                flush()
                after_kanji = "\u3400" <= phrase[-1] <= "\u9fff"
                token = JAPANESE[phrase]
                tokens += [token] if token else []
                if phrase in _CLAUSE_ENDS:
                    tokens.append("<end>")
                at += length
                break
        else:
            strange += text[at]
            at += 1
    flush()
    origins = [token.startswith("<from-") for token in tokens]
    # "from the left" alone says where a thing comes from, so it moves the other way.
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    goes = any(token in _DIRECTIONS for token in tokens)
    return [
        opposite[token[6:-1]] if origin else token
        for token, origin in zip(tokens, origins, strict=True)
        if not (origin and goes)
    ]


def _resolve_camera(tokens: list[str]) -> list[str]:
    """Give the camera its direction: within a clause, the next one after its mark, else the last before."""
    clauses: list[list[str]] = [[]]
    for token in tokens:
        if token == "<end>":
            clauses.append([])
        else:
            clauses[-1].append(token)
    out: list[str] = []
    for clause in clauses:
        if "<pan>" in clause:
            mark = clause.index("<pan>")
            sides = [at for at, token in enumerate(clause) if token in {"left", "right"}]
            later = [at for at in sides if at > mark]
            at = later[0] if later else (sides[-1] if sides else -1)
            if at >= 0:
                clause[at] = "pan-" + clause[at]
        out += [token for token in clause if token != "<pan>"]
    return out
