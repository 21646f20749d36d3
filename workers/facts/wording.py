"""The grammar of the `facts` captions: every phrase in English beside its Chinese, and the choice among them.

`compose` plans a caption (an opening that joins two or three facts, then a sentence or two on color, light and
sharpness, the faces, the text) and words each part by a choice keyed with the content, so a caption is the same on
every machine while its neighbours differ. English is American, as in the captions of the usual models. Orientation
is never worded as "landscape" or "portrait" alone: a text-to-image model would take those for what is depicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple, TypeVar

from workers.facts.measures import Faces, Facts, Text
from workers.facts.quoting import Quote, quote, words_at_least, words_at_most
from workers.photometry import COLOR_NAMES

MIN_WORDS, MAX_WORDS = 20, 80
MAX_QUOTED = 45  # words of a quotation: enough for a poster, and its look still finds room
MIN_QUOTED = 20  # words of a long quotation that go before remarks on its look
TEXT_FRAME = 18  # words at most of that sentence without its quotation
VARIANTS = 64  # wordings of one content; a prompt picks one of them

T = TypeVar("T")


class Say(NamedTuple):
    """The same thing in English and in Simplified Chinese."""

    en: str
    zh: str


def variant_of(key: str, prompt: str) -> int:
    """Which of the `VARIANTS` wordings (sha256, prompt) chooses; a prompt moves all contents by the same number."""
    return (_hash(f"content {key}") + _hash(f"prompt {prompt}")) % VARIANTS


def compose(facts: Facts, variant: int) -> Say:
    """The caption of `facts` in wording `variant`: one paragraph in both languages, 20 to 80 English words."""
    return _Composer(facts, variant).caption()


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


# ---------------------------------------------------------------------------------------------------- phrase tables

NOUNS = ((Say("picture", "图片"), "张"), (Say("image", "图像"), "幅"))

SHAPES = {
    "square": (Say("square", "方形"), Say("square-format", "正方形")),
    "landscape": (Say("horizontal", "横向"), Say("landscape-format", "横版")),
    "portrait": (Say("vertical", "竖向"), Say("upright", "竖版"), Say("portrait-format", "竖幅")),
    "wide": (Say("very wide", "超宽"), Say("panoramic", "宽幅")),
    "strip": (Say("long, strip-shaped", "长条形"), Say("banner-shaped", "横条形")),
    "tall": (Say("tall, narrow", "狭长"), Say("very tall", "瘦长")),
    "column": (Say("very tall and narrow", "极为狭长"), Say("column-shaped", "竖条形")),
}

BRIGHTNESS = {
    "black": (Say("almost black", "近乎全黑"), Say("almost entirely in the dark", "几乎一片漆黑")),
    "dark": (Say("dark", "偏暗"), Say("dark in tone", "影调深沉")),
    "dim": (Say("rather dark", "略暗"), Say("somewhat dim", "稍显暗淡")),
    "medium": (Say("of medium brightness", "亮度适中"), Say("moderate in brightness", "亮度中等")),
    "bright": (Say("bright", "明亮"), Say("light in tone", "影调明快")),
    "brilliant": (Say("very bright", "非常明亮"), Say("very light in tone", "影调极亮")),
}

CONTRAST = {
    "flat": (Say("with hardly any contrast", "几乎没有明暗对比"), Say("and very flat in contrast", "反差极小")),
    "low": (Say("with soft contrast", "明暗对比柔和"), Say("and low in contrast", "反差较小")),
    "medium": (Say("with moderate contrast", "明暗对比适中"), Say("and moderate in contrast", "反差适中")),
    "strong": (Say("with strong contrast", "明暗对比强烈"), Say("and high in contrast", "反差很大")),
}

MEDIUM_LIGHT = (
    Say("of medium brightness and contrast", "亮度与对比都适中"),
    Say("moderate in both brightness and contrast", "明暗与反差都很适中"),
)

TONE = {
    "gray": (
        Say("there is hardly any color", "几乎没有彩色"),
        Say("the {noun} is practically monochrome", "整体近乎灰阶"),
        Say("color is all but absent", "基本不含彩色"),
    ),
    "muted": (
        Say("the colors are muted", "色彩素净"),
        Say("the colors are subdued", "色彩较为低调"),
        Say("the palette is restrained", "用色克制"),
    ),
    "medium": (
        Say("the colors are moderately saturated", "色彩浓淡适中"),
        Say("the colors are neither pale nor intense", "色彩不淡也不浓"),
    ),
    "vivid": (
        Say("the colors are vivid", "色彩鲜艳"),
        Say("color is strong throughout", "色彩浓郁"),
        Say("the palette is lively", "配色明快鲜亮"),
    ),
}

FOCUS = {
    "soft": (
        Say("fine detail is lacking", "缺少精细的细节"),
        Say("fine detail is scarce throughout", "各处都少有细节"),
        Say("little of the detail is sharp", "清晰的细节不多"),
    ),
    "partial": (
        Say("one area is clearly sharper than the rest", "有一处明显比其余部分清晰"),
        Say("a sharp area stands out from softer surroundings", "清晰的局部从柔和的周围中凸显出来"),
        Say("sharp detail in one part contrasts with smoothness elsewhere", "局部的清晰与其他地方的平滑形成对照"),
    ),
    "fair": (
        Say("detail is reasonably sharp", "细节较为清晰"),
        Say("the details come out fairly clearly", "细节表现得比较清楚"),
    ),
    "crisp": (
        Say("edges and fine detail are crisp", "边缘和细节都很锐利"),
        Say("even small details are sharp", "细微之处也很清晰"),
    ),
}

# Upper limit of a share; how it is said of the frame; in Chinese as "takes up ..." and as "... of the frame".
SHARES = (
    (0.03, "a small part", "占画面的一小部分", "画面的一小部分"),
    (0.075, "about a twentieth", "约占画面的二十分之一", "约二十分之一的画面"),
    (0.15, "about a tenth", "约占画面的十分之一", "约十分之一的画面"),
    (0.225, "about a fifth", "约占画面的五分之一", "约五分之一的画面"),
    (0.29, "about a quarter", "约占画面的四分之一", "约四分之一的画面"),
    (0.42, "about a third", "约占画面的三分之一", "约三分之一的画面"),
    (0.58, "about half", "约占画面的一半", "约一半的画面"),
    (0.71, "about two thirds", "约占画面的三分之二", "约三分之二的画面"),
    (0.82, "about three quarters", "约占画面的四分之三", "约四分之三的画面"),
    (0.95, "most", "占画面的绝大部分", "绝大部分画面"),
    (float("inf"), "nearly all", "几乎占满画面", "几乎整个画面"),
)

PLACES = {
    "top": Say("at the top", "顶部"),
    "bottom": Say("at the bottom", "底部"),
    "left": Say("on the left", "左侧"),
    "right": Say("on the right", "右侧"),
    "middle": Say("in the middle", "中部"),
    "center": Say("near the center", "中央附近"),
    "upper left": Say("in the upper left", "左上方"),
    "upper right": Say("in the upper right", "右上方"),
    "lower left": Say("in the lower left", "左下方"),
    "lower right": Say("in the lower right", "右下方"),
    "all over": Say("across the frame", "各处"),
}

SCRIPTS = {
    "han": Say("text in Chinese characters", "汉字"),
    "kana": Say("text in Japanese script", "日文"),
    "hangul": Say("text in Korean script", "韩文"),
    "latin": Say("text in Latin letters", "拉丁字母"),
    "han+latin": Say("text in Chinese characters and Latin letters", "中西文混排文字"),
}
LANGUAGES = {"zh": "han", "en": "latin", "mixed": "han+latin"}

NUMBERS = (
    Say("no", "零"), Say("one", "一"), Say("two", "两"), Say("three", "三"), Say("four", "四"), Say("five", "五"),
    Say("six", "六"), Say("seven", "七"), Say("eight", "八"), Say("nine", "九"), Say("ten", "十"),
    Say("eleven", "十一"), Say("twelve", "十二"),
)  # fmt: skip

# Openings by the facts that they tell. {a}, {this}: the picture; {cols}: its colors as a predicate; {hues}: as a list.
OPEN_COLORS = (
    ("{this} is {cols}", "{this}{cols}"),
    ("this is {a}, {cols}", "这是{a}，{cols}"),
    ("shown here is {a}, {cols}", "图中所示为{a}，{cols}"),
)
OPEN_HUES = (
    ("{hues} are the main colors of {this}", "{this}的主要颜色是{hues}"),
    ("{a} with {hues} as its main colors", "{a}，主要颜色为{hues}"),
    ("in {this}, the prevailing colors are {hues}", "在{this}中，占主导的颜色是{hues}"),
)
OPEN_FIRST = (
    ("in {this}, {first} sets the tone, accompanied by {rest}", "在{this}中，{first}定下基调，并伴有{rest}"),
    ("{first} is the leading color of {this}, followed by {rest}", "{this}以{first}为主色，其次是{rest}"),
)
OPEN_LIGHT = (
    ("{this} is {light}", "{this}{light}"),
    ("this is {a}, {light}", "这是{a}，{light}"),
    ("{light}, {this} is described here by what was measured in it", "{this}{light}，以下描述均来自测量"),
)
OPEN_BOTH = (
    ("{light}, {this} is {cols}", "{this}{light}，{cols}"),
    ("{cols}, {this} is {light}", "{this}{cols}，整体{light}"),
    ("{this} is {cols}, and it is {light}", "{this}{cols}，画面{light}"),
    ("{this}, {light}, is {cols}", "{this}{light}，颜色上{cols}"),
)
OPEN_LIGHT_HUES = (
    ("{hues} dominate {this}, which is {light}", "{hues}主导着{this}，画面{light}"),
    ("{a} in {hues}, {light}", "{a}，色调为{hues}，整体{light}"),
    ("{hues} set the tone of {this}, which is {light}", "{hues}为{this}定下基调，整体{light}"),
)
OPEN_FACES = (
    ("in {this}, {faces}", "在{this}中，{faces}"),
    ("this is {a} in which {faces}", "这是{a}，{faces}"),
)
OPEN_TEXT = (
    ("{this} carries {text}{at} that reads {quote}", "{this}{in_it}有{text}，写着{quote}"),
    ("in {this}, the {text}{at} reads {quote}", "在{this}中，{in_it}的{text}写着{quote}"),
)
OPEN_BARE = (
    ("this is {a}", "这是{a}"),
    ("here is {a}", "眼前是{a}"),
    ("what follows describes {a}", "以下描述的是{a}"),
)

# The colors after an opening that did not tell them, with and without the light.
LOOK_BOTH = (("{light}, {it} is {cols}", "画面{light}，{cols}"),)
LOOK_COLORS = (
    ("{it} is {cols}", "画面{cols}"),
    ("the main colors are {hues}", "主要颜色为{hues}"),
)

# One line; several lines; lines of which some are left out.
TEXT_LINE = (
    ("a line of {text}{at} reads {quote}", "{where}有一行{text}，写着{quote}"),
    ("{head} one can read {quote}", "{where}可以读到{quote}"),
    ("the {text}{at} reads {quote}", "{where}的{text}写着{quote}"),
    ("there is {text}{at} that says {quote}", "{where}出现的{text}是{quote}"),
)
TEXT_LINES = (
    ("{count} lines of {text}{at} read {quote}", "{where}有{count}行{text}，内容为{quote}"),
    ("{head} one can read {quote}", "{where}可以读到{quote}"),
    ("the {text}{at} reads {quote}", "{where}的{text}写着{quote}"),
)
TEXT_PART = (
    ("the {text}{at} reads, in part, {quote}", "{where}的{text}，部分内容为{quote}"),
    ("from the {text}{at} one can make out {quote}", "{where}的{text}中可以辨认出{quote}"),
    ("part of the {text}{at} reads {quote}", "{where}有{text}，其中一部分写着{quote}"),
)

UNKNOWN = {
    "shape": Say("shape", "形状"),
    "colors": Say("colors", "色彩"),
    "light": Say("light", "明暗"),
    "focus": Say("sharpness", "清晰度"),
}


# ------------------------------------------------------------------------------------------------ pieces of grammar


def fill(template: Say, slots: Mapping[str, Say]) -> Say:
    """`template` with each `{slot}` replaced by the English or the Chinese of that name."""
    return Say(
        template.en.format_map({name: slot.en for name, slot in slots.items()}),
        template.zh.format_map({name: slot.zh for name, slot in slots.items()}),
    )


def sentence(say: Say) -> Say:
    """A sentence: a capital at its head, full stops at its ends."""
    return Say(f"{say.en[:1].upper()}{say.en[1:]}.", f"{say.zh}。")


def listed(words: Sequence[Say]) -> Say:
    """`a, b and c`, `甲、乙和丙`."""
    *most, last = words
    if not most:
        return last
    return Say(
        f"{', '.join(w.en for w in most)} and {last.en}",
        f"{'、'.join(w.zh for w in most)}和{last.zh}",
    )


def clauses(parts: Sequence[Say], mark: Say) -> Say:
    """Main clauses in one sentence: `a, b, and c`; two of them by `mark`."""
    if len(parts) == 2:
        return Say(mark.en.join(p.en for p in parts), mark.zh.join(p.zh for p in parts))
    *most, last = parts
    return Say(
        ", ".join([*(p.en for p in most), f"and {last.en}"]) if most else last.en, "，".join(p.zh for p in parts)
    )


def article(phrase: str) -> str:
    """`phrase` after `a` or `an`."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def number(count: int) -> Say:
    """A number in words up to twelve, before a Chinese measure word."""
    return NUMBERS[count] if count < len(NUMBERS) else Say(str(count), str(count))


def share(part: float) -> Say:
    """A share as something takes it up: `about a third of the frame`, `约占画面的三分之一`."""
    _, en, zh, _ = next(row for row in SHARES if part < row[0])
    return Say(f"{en} of the frame", zh)


def expanse(part: float) -> Say:
    """A share as the frame's own part: `about a third of the frame`, `约三分之一的画面`."""
    _, en, _, zh = next(row for row in SHARES if part < row[0])
    return Say(f"{en} of the frame", zh)


def length(sentences: Iterable[Say]) -> float:
    """English words, counted generously."""
    return sum(words_at_most(s.en) for s in sentences)


class _Composer:
    """One caption in the making. Each `pick` has a name, so a fact that changes rewords only its own phrases."""

    def __init__(self, facts: Facts, variant: int) -> None:
        self.facts = facts
        self.seed = f"{facts.key}:{variant}:"
        noun, counter = self.pick("noun", NOUNS)
        shape = self.pick("shape", SHAPES[facts.shape]) if facts.shape else Say("", "")
        moving = Say("animated", "动态") if (facts.frames or 1) > 1 else Say("", "")
        phrase = Say(" ".join(w for w in (moving.en, shape.en, noun.en) if w), f"{shape.zh}{moving.zh}{noun.zh}")
        self.slots: dict[str, Say] = {
            "a": Say(article(phrase.en), f"一{counter}{phrase.zh}"),
            "this": Say(f"this {phrase.en}", f"这{counter}{phrase.zh}"),
            "noun": noun,
            "it": Say("it", "画面"),
        }

    def pick(self, name: str, options: Sequence[T]) -> T:
        return options[_hash(self.seed + name) % len(options)]

    def say(self, name: str, options: Sequence[tuple[str, str] | Say], **slots: Say) -> Say:
        """One of `options`, its slots filled."""
        return fill(Say(*self.pick(name, options)), {**self.slots, **slots})

    # The plan.

    def caption(self) -> Say:
        """Opening, then faces, look and text in an order of the content's own, then what it takes to reach 20 words."""
        facts = self.facts
        told, opening = self.opening()
        has_text = facts.text is not None and bool(facts.text.lines) and "text" not in told
        wanted = sum(words_at_most(line) + 1 for line in facts.text.lines) if facts.text and has_text else 0
        limit = MAX_WORDS - (min(wanted, MIN_QUOTED) + TEXT_FRAME if has_text else 0)
        text_first = has_text and facts.text is not None and (facts.text.area or 0) >= 0.15
        faces = [] if "faces" in told or not facts.faces or not facts.faces.count else [self.faces(facts.faces)]
        faces_first = self.pick("order", (True, False))
        if "faces" in told or "text" in told or (faces and faces_first) or text_first:
            self.slots["it"] = Say(f"the {self.slots['noun'].en}", "画面")
        look = self.look(told)
        body = [*faces, *look] if faces_first else [*look, *faces]
        for optional in (*reversed(look), *faces):
            if length([opening, *body]) > limit:
                body.remove(optional)
        text = [] if "text" in told or not facts.text else self.text(facts.text, MAX_WORDS - length([opening, *body]))
        sentences = [opening, *text, *body] if text_first else [opening, *body, *text]
        for extra in self.extras():
            if length([*sentences, extra]) <= MAX_WORDS:
                sentences.append(extra)
        for filler in self.fillers():
            if sum(words_at_least(s.en) for s in sentences) >= MIN_WORDS:
                break
            sentences.append(filler)
        return Say(" ".join(s.en for s in sentences), "".join(s.zh for s in sentences))

    def opening(self) -> tuple[set[str], Say]:
        """The first sentence and the facts that it tells."""
        facts, slots = self.facts, dict(self.slots)
        several = len(facts.colors) > 1 and not self.single
        options: list[tuple[set[str], tuple[str, str]]] = []
        if facts.colors:
            slots |= {"cols": self.colors(), "hues": self.hues(0), "first": self.hues(0, 1)}
            options += [({"colors"}, o) for o in OPEN_COLORS]
        if several:
            slots["rest"] = self.hues(1)
            options += [({"colors"}, o) for o in OPEN_HUES]
            leads = (facts.colors[0][1] or 0) >= 0.4
            options += [({"colors"}, o) for o in OPEN_FIRST if leads]
        if light := self.light():
            slots["light"] = light
            if not facts.colors:
                options += [({"light"}, o) for o in OPEN_LIGHT]
            elif not self.single:
                options += [({"colors", "light"}, o) for o in OPEN_BOTH]
            if several:
                options += [({"colors", "light"}, o) for o in OPEN_LIGHT_HUES]
        if facts.faces and facts.faces.count and (facts.faces.area or 0) >= 0.03:
            slots["faces"] = self.face_clause(facts.faces)
            options += [({"faces"}, o) for o in OPEN_FACES * 2]
        if facts.text and (facts.text.area or 0) >= 0.02 and not facts.text.partial:
            quoted = quote(list(facts.text.lines), 15)
            if quoted and not quoted.cut:
                slots |= self.text_slots(facts.text, quoted)
                options += [({"text"}, o) for o in OPEN_TEXT * 2]
        told, chosen = self.pick("opening", options or [(set(), o) for o in OPEN_BARE])
        return told, sentence(fill(Say(*chosen), slots))

    # Color, light, sharpness.

    @property
    def single(self) -> bool:
        """One color covers nearly everything."""
        return bool(self.facts.colors) and (self.facts.colors[0][1] or 0) >= 0.85

    def hues(self, start: int, stop: int | None = None) -> Say:
        return listed([Say(name, COLOR_NAMES[name]) for name, _ in self.facts.colors[start:stop]])

    def colors(self) -> Say:
        """The colors as a predicate: `mostly brown with some gray`, `以棕色为主，间有灰色`."""
        colors = self.facts.colors
        lead, others = colors[0][1], [part or 0 for _, part in colors[1:]]
        slots = {"first": self.hues(0, 1), "all": self.hues(0), "rest": self.hues(1) if others else Say("", "")}
        if self.single:
            options = [("almost entirely {first}", "几乎全为{first}"), ("{first} nearly all over", "几乎通体{first}")]
        elif not others:
            options = [("mainly {first}", "以{first}为主"), ("chiefly {first}", "主要呈{first}")]
        elif lead is not None and lead >= 0.45:
            options = [
                ("mostly {first} with some {rest}", "以{first}为主，间有{rest}"),
                ("predominantly {first} with areas of {rest}", "{first}占主导，另有{rest}"),
            ]
            if max(others) < 0.12:
                options = [
                    ("mostly {first} with touches of {rest}", "以{first}为主，略带{rest}"),
                    ("largely {first} with a little {rest}", "大部分为{first}，另有少许{rest}"),
                ]
        else:
            options = [
                ("a mix of {all}", "{all}相间"),
                ("a blend of {all}", "由{all}交织而成"),
                ("composed chiefly of {all}", "主要由{all}组成"),
            ]
        return self.say("colors", options, **slots)

    def light(self) -> Say | None:
        """Brightness and contrast as an adjective phrase that fits after `is` and between commas."""
        facts = self.facts
        bright = self.say("brightness", BRIGHTNESS[facts.brightness]) if facts.brightness else None
        if facts.contrast == "none":
            even = Say("even in tone almost throughout", "影调几乎处处均一")
            return (
                even if bright is None or facts.colors else Say(f"{bright.en} and {even.en}", f"{bright.zh}，{even.zh}")
            )
        if facts.contrast is None:
            return bright
        plain, adjective = CONTRAST[facts.contrast]
        if bright is None:
            return Say(adjective.en.removeprefix("and "), adjective.zh)
        if facts.brightness == facts.contrast == "medium":
            return self.say("contrast", MEDIUM_LIGHT)
        contrast = self.pick("contrast", (plain, adjective))
        if facts.brightness in ("medium", "black"):  # "moderate in brightness" asks for "and low in contrast"
            contrast = adjective if bright.en.startswith("moderate") else plain
        return Say(f"{bright.en} {contrast.en}", f"{bright.zh}，{contrast.zh}")

    def look(self, told: set[str]) -> list[Say]:
        """Sentences on color, light, color strength and sharpness, as far as the opening has not told them."""
        facts = self.facts
        sentences: list[Say] = []
        light = None if "light" in told else self.light()
        if facts.colors and "colors" not in told:
            slots = {"cols": self.colors(), "hues": self.hues(0), "light": light or Say("", "")}
            sentences.append(sentence(self.say("look", LOOK_BOTH if light else LOOK_COLORS, **slots)))
            self.slots["it"] = Say("it", "画面")
            light = None
        parts = [self.say("lit", (("{it} is {light}", "画面{light}"),), light=light)] if light else []
        if facts.tone and not (self.single and facts.tone == "gray"):
            parts.append(self.say("tone", TONE[facts.tone]))
        parts += [self.say("focus", FOCUS[facts.focus])] if facts.focus else []
        if parts:
            mark = self.pick("mark", (Say(", and ", "，"), Say("; ", "；"), Say(", and ", "，")))
            sentences.append(sentence(clauses(parts, mark)))
        return sentences

    # Faces.

    def face_clause(self, faces: Faces) -> Say:
        """`two faces were detected, one on the left and one near the center, the larger ...`."""
        one = faces.count == 1
        count = number(faces.count)
        slots = {
            "n": count if not one else self.pick("one face", (Say("one", "一"), Say("a single", "一"))),
            "faces": Say("face" if one else "faces", ""),
            "were": Say("was" if one else "were", ""),
            "place": self.face_places(faces),
            "size": self.face_size(faces),
        }
        options: Sequence[tuple[str, str]] = (
            ("face detection finds {n} {faces}{place}{size}", "经人脸检测发现{n}张人脸{place}{size}"),
            ("{n} {faces} {were} detected{place}{size}", "检测到{n}张人脸{place}{size}"),
            ("{n} {faces} {were} found by the face detector{place}{size}", "人脸检测器找到了{n}张人脸{place}{size}"),
        )
        if faces.count >= len(NUMBERS):  # a sentence does not begin with figures
            options = options[:1]
        return self.say("faces", options, **slots)

    def faces(self, faces: Faces) -> Say:
        return sentence(self.face_clause(faces))

    def face_places(self, faces: Faces) -> Say:
        places = [PLACES[place] for place in faces.places]
        zones = [PLACES[place] for place in dict.fromkeys(faces.places)]
        if not places:
            return Say("", "")
        if len(places) == 1:
            return Say(f" {places[0].en}", f"，位于{places[0].zh}")
        if len(zones) == 1:
            both = Say("both of them", "都在") if len(places) == 2 else Say("all of them", "全部在")
            return Say(f", {both.en} {zones[0].en}", f"，{both.zh}{zones[0].zh}")
        if len(places) == 2:
            return Say(f", one {places[0].en} and one {places[1].en}", f"，一张在{places[0].zh}，一张在{places[1].zh}")
        if len(zones) == 3:
            return Say(", spread from left to right", "，从左到右分布")
        return Say(f", {zones[0].en} and {zones[1].en}", f"，分布在{zones[0].zh}和{zones[1].zh}")

    def face_size(self, faces: Faces) -> Say:
        if faces.area is None:
            return Say("", "")
        if faces.area < 0.03:
            small = Say("small", "很小") if faces.area < 0.008 else Say("fairly small", "较小")
            if faces.count == 1:
                return Say(f", {small.en} in the frame", f"，在画面中{small.zh}")
            who = "both" if faces.count == 2 else "all of them"
            joined = " and" if len(set(faces.places)) == 1 else f", {who}"
            return Say(f"{joined} {small.en} in the frame", f"，在画面中都{small.zh}")
        part = share(faces.area)
        largest = Say("", "")
        if faces.count > 1:
            largest = Say(" the larger", "较大的一张") if faces.count == 2 else Say(" the largest", "其中最大的一张")
        return Say(f",{largest.en} taking up {part.en}", f"，{largest.zh}{part.zh}")

    # Text.

    def text_slots(self, text: Text, quoted: Quote) -> dict[str, Say]:
        place = PLACES.get(text.place or "")
        plain = Say("text", "文字")
        named = SCRIPTS.get(quoted.script, plain)
        return {
            "text": self.pick("script", (plain, named) if quoted.script != "latin" else (plain, plain, plain, named)),
            "count": number(quoted.lines) if quoted.lines < len(NUMBERS) else Say("many", "很多"),
            "at": Say(f" {place.en}", "") if place else Say("", ""),
            "head": Say(f"{place.en},", "") if place else Say("in it", ""),
            "where": Say("", f"画面{place.zh}" if place else "图中"),
            "in_it": Say("", place.zh if place else "上面"),
            "quote": Say(quoted.text, quoted.text),
        }

    def text(self, text: Text, space: float) -> list[Say]:
        """A sentence that quotes what was read with certainty, or says why not; [] for a picture without text."""
        quoted = quote(list(text.lines), min(MAX_QUOTED, space - TEXT_FRAME)) if text.lines else None
        if not quoted:
            return [self.unquoted(text)] if text.partial or text.lines else []
        options = TEXT_PART if quoted.cut or text.partial else TEXT_LINE if quoted.lines == 1 else TEXT_LINES
        return [sentence(self.say("text", options, **self.text_slots(text, quoted)))]

    def unquoted(self, text: Text) -> Say:
        plain = Say("text", "文字")
        slots = {"text": SCRIPTS.get(LANGUAGES.get(text.language or "", ""), plain)}
        options = (
            (
                "some {text} was detected, but not read with enough certainty to be quoted",
                "画面中检测到{text}，但识别把握不足，不予引用",
            ),
            ("there is {text}, which could not be read reliably", "画面中有{text}，但未能可靠识读"),
        )
        return sentence(self.say("text", options, **slots))

    # What is added when there is room, and what is added to reach 20 words.

    def extras(self) -> list[Say]:
        facts, found = self.facts, []
        if facts.frames and facts.frames > 1:
            slots = {"count": Say(str(facts.frames), str(facts.frames))}
            options = (
                (
                    "the animation has {count} frames, of which the first is described here",
                    "动画共{count}帧，这里描述的是第一帧",
                ),
                ("of the {count} frames of this animation, this is the first", "动画共有{count}帧，这是其中的第一帧"),
            )
            found.append(sentence(self.say("frames", options, **slots)))
        if facts.border is not None and 0.03 <= facts.border < 0.95:
            options = (
                ("plain bars along the edges take up {part}", "边缘的纯色边条{part}"),
                ("plain borders at the edges account for {part}", "边缘的纯色边框{part}"),
            )
            found.append(sentence(self.say("border", options, part=share(facts.border))))
        for name, part, color in (
            ("black", facts.black, Say("pure black", "纯黑")),
            ("white", facts.white, Say("pure white", "纯白")),
        ):
            told = bool(facts.colors) and facts.colors[0][0] == name and (facts.colors[0][1] or 0) >= 0.45
            if part is not None and part >= 0.2 and not told and not self.single:
                options = (
                    ("{part} is almost {color}", "{part}接近{color}"),
                    ("{part} comes close to {color}", "{part}几近{color}"),
                )
                found.append(sentence(self.say(name, options, part=expanse(part), color=color)))
        if facts.text and facts.text.lines and facts.text.area is not None and facts.text.area >= 0.15:
            options = (("the text takes up {part}", "文字{part}"), ("the text covers {part}", "文字区域{part}"))
            found.append(sentence(self.say("text area", options, part=share(facts.text.area))))
        return found

    def fillers(self) -> list[Say]:
        facts, found = self.facts, []
        no_faces = facts.faces is not None and facts.faces.count == 0
        no_text = facts.text is not None and not facts.text.lines and not facts.text.partial
        if no_faces and no_text:
            options = (
                ("no face was detected, and no text was read in it", "未检测到人脸，也没有读到文字"),
                ("neither faces nor text were detected", "既没有检测到人脸，也没有检测到文字"),
            )
            found.append(sentence(self.say("absent", options)))
        elif no_faces:
            found.append(sentence(self.say("absent", (("no face was detected in the {noun}", "画面中未检测到人脸"),))))
        elif no_text:
            found.append(sentence(self.say("absent", (("no text was read in the {noun}", "画面中没有读到文字"),))))
        if facts.size:
            size = Say(f"{facts.size[0]} by {facts.size[1]}", f"{facts.size[0]}×{facts.size[1]}")
            ratio = Say("", "")
            if facts.ratio and facts.shape != "square":
                ratio = Say(f", close to a ratio of {facts.ratio[0]}", f"，宽高比接近{facts.ratio[1]}")
            options = (
                ("the {noun} measures {size} pixels{ratio}", "{noun}尺寸为{size}像素{ratio}"),
                ("it is {size} pixels in size{ratio}", "尺寸是{size}像素{ratio}"),
            )
            found.append(sentence(self.say("size", options, size=size, ratio=ratio)))
        return [*found, *self.unknown(), *self.closing()]

    def unknown(self) -> list[Say]:
        """What was not measured, for rows about which little is known."""
        facts = self.facts
        looks = [
            name
            for name, known in (
                (UNKNOWN["shape"], facts.shape),
                (UNKNOWN["colors"], facts.colors),
                (UNKNOWN["light"], facts.brightness or facts.contrast),
                (UNKNOWN["focus"], facts.focus or facts.contrast == "none"),
            )
            if not known
        ]
        contents = [
            name
            for name, known in ((Say("faces", "人脸"), facts.faces), (Say("text", "文字"), facts.text))
            if known is None
        ]
        slots = {
            "were": Say("was" if len(looks) == 1 else "were", ""),
            "looks": listed(looks) if looks else Say("", ""),
            "contents": Say(" or ".join(c.en for c in contents), "或".join(c.zh for c in contents)),
        }
        options: tuple[tuple[str, str], ...] = ()
        if looks and contents:
            options = (
                (
                    "its {looks} {were} not measured, nor is it known whether it shows any {contents}",
                    "其{looks}没有测量，是否有{contents}也不得而知",
                ),
                (
                    "nothing is known of its {looks}, and whether it shows any {contents} was not examined",
                    "其{looks}均属未知，是否有{contents}也未经检查",
                ),
            )
        elif looks:
            options = (
                ("its {looks} {were} not measured", "其{looks}没有测量"),
                ("nothing is known of its {looks}", "其{looks}未知"),
            )
        elif contents:
            options = (("it was not examined for {contents}", "没有检查其中是否有{contents}"),)
        return [sentence(self.say("unknown", options, **slots))] if options else []

    def closing(self) -> list[Say]:
        options = (
            (
                "the measurements say nothing more, and so neither does this caption",
                "测量结果仅此而已，描述也就到此为止",
            ),
            ("no more than this was measured, so no more is said here", "测得的只有这些，这里也不多作描述"),
        )
        last = ("all of this comes from measurement alone", "以上内容全部来自测量")
        return [sentence(self.say("closing", options)), sentence(self.say("last", (last,)))]
