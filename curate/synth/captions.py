"""Captions of a spec in Chinese and English: templates, each with a number that the spec records.

A caption names the ground or the photograph, the carrier and its place, colours, type and way of writing, and quotes
every line verbatim; the quotation stays in its own language in both. One in six is short, as people write.
"""

from __future__ import annotations

from curate.synth.colors import name
from curate.synth.spec import Spec, World, colored
from workers.poster import place_of

PURE_ZH = (
    "{ground}背景上，用{color}{font}{says}。",
    "一张{ground}背景的图片，上面用{color}{font}{says}。",
    "{ground}的底色上{how}排列着{color}的{font}，{says}。",
    "纯文字图片，{ground}底，{color}字，{says}。",
    "画面上只有文字：{ground}的背景上，{color}{font}{says}。",
    "以{ground}为底，{color}的文字{how}排列，{says}。",
    "图中没有其他图案，{ground}背景衬着{color}{font}，{says}。",
    "这是一张简洁的文字图，背景为{ground}，字为{color}，{how}{says}。",
    "{color}的{font}写在{ground}背景上，{how}排列，{says}。",
    "一幅{ground}的画面，{color}文字十分醒目，{says}。",
    "写着{quotes}的图片。",
    "{ground}底{color}字，内容是{quotes}。",
)
PURE_EN = (
    "On {a_ground} background, {color} {font} characters {read}.",
    "{A_ground} background with {color} text in {a_font} typeface that {reads}.",
    "A plain image of text: {color} {font} characters on {ground}, arranged {how}, {reading}.",
    "{Color} Chinese characters on {a_ground} background {read}.",
    "The background is {ground}, and the {color} {font} text {reads}.",
    "Text only: {a_ground} ground with {color} lettering set {how}, {reading}.",
    "An image with nothing but text; on {ground}, the {color} {font} writing {reads}.",
    "A simple {ground} image with {color} text arranged {how}, which {reads}.",
    "{Color} {font} text, written {how} on {a_ground} background, {reads}.",
    "Against {a_ground} backdrop stands {color} text that {reads}.",
    "An image that says {quotes}.",
    "{Color} on {ground}: {quotes}.",
)
COMPOSED_ZH = (
    "{base}，画面{place}有{carrier}，{says}。",
    "{base}。画面{place}是{carrier}，{how}{says}。",
    "{base}，{place}的{carrier}上{how}{says}。",
    "{base}；在画面{place}，{carrier}上用{color}{font}{says}。",
    "画面{place}有{carrier}，{says}，背景是这样的：{base}。",
    "{base}，{place}可以看到{carrier}，上面{says}。",
    "{base}。{place}的{carrier}上有{color}的{font}，{says}。",
    "照片{place}出现了{carrier}，{how}{says}。{base}。",
    "{base}，其中{place}的{carrier}{says}，文字为{color}。",
    "{base}。文字位于画面{place}，写在{carrier}上，{says}。",
    "{base}，上面写着{quotes}。",
    "带有{quotes}字样的照片，文字在画面{place}。{base}。",
)
COMPOSED_BARE_ZH = (
    "{base}，画面{place}用{color}{font}{says}。",
    "{base}。画面{place}叠加着{color}的文字，{how}{says}。",
    "{base}，{place}有{color}的{font}，{says}。",
    "{base}；照片{place}直接印着{color}文字，{says}。",
    "照片{place}有一段{color}文字，{says}。{base}。",
    "{base}，{place}的{color}文字{how}排列，{says}。",
    "{base}。{place}的文字为{color}{font}，{says}。",
    "{base}，配有{color}的文字，位于画面{place}，{says}。",
    "{base}。{color}的{font}出现在画面{place}，{says}。",
    "在画面{place}，{color}的{font}{says}，背景是这样的：{base}。",
    "{base}，上面写着{quotes}。",
    "带有{quotes}字样的照片，文字在画面{place}。{base}。",
)
COMPOSED_EN = (
    "{base}, with {carrier} {place} that {reads}.",
    "{base}. {Place} there is {carrier} that {reads}.",
    "{base}, and {place} {carrier} with {color} text {reading}.",
    "{base}. {A_carrier} {place} carries {color} {font} characters that {read}.",
    "{A_carrier} {place} {reads}. {base}.",
    "{base}; {carrier} {place} {reads}.",
    "{base}. {Place}, {color} text on {carrier} {reads}.",
    "A photograph with {carrier} {place}, on which {color} writing set {how} {reads}. {base}.",
    "{base}, where {carrier} {place} {reads}.",
    "{base}. The text is {place}, written {how} on {carrier}, and {reads}.",
    "{base}, with the words {quotes}.",
    "A photograph with the text {quotes} {place}. {base}.",
)
COMPOSED_BARE_EN = (
    "{base}, with {color} text {place} that {reads}.",
    "{base}. {Place}, {color} {font} characters set {how} {read}.",
    "{base}, overlaid with {color} text {place}, {reading}.",
    "{base}; {color} lettering {place} {reads}.",
    "{Color} text {place} of the photograph {reads}. {base}.",
    "{base}. The {color} {font} text {place} {reads}.",
    "{base}, captioned {place} in {color} {font} characters that {read}.",
    "{base}. {Place} the photograph carries {color} writing, {reading}.",
    "{base}, and {place} stands {color} text arranged {how}, {reading}.",
    "{base}. {Color} characters printed on the photograph {place} {read}.",
    "{base}, with the words {quotes}.",
    "A photograph with the text {quotes} {place}. {base}.",
)
STRUCTURED_ZH = (
    "{thing}，{parts}。",
    "图中，{thing}，{parts}。",
    "在这幅画面里，{thing}，{parts}。",
    "画面展示了{thing}，{parts}。",
    "{thing}，文字清晰，{parts}。",
    "一张平面设计风格的图片：{thing}，{parts}。",
    "{thing}。上面的文字是这样的：{parts}。",
    "可以看到{thing}，{parts}，文字使用{font}。",
    "{thing}，主要文字为{color}{font}，{parts}。",
    "{thing}，{color}的文字{how}排列，{parts}。",
    "{thing}，写有{quotes}。",
    "写着{quotes}的{noun}。",
)
STRUCTURED_EN = (
    "{A_thing}; {parts}.",
    "The image shows {a_thing}; {parts}.",
    "This is {a_thing}, on which {parts}.",
    "{A_thing} with clear lettering: {parts}.",
    "A design of {a_thing}, where {parts}.",
    "{A_thing}. The text is as follows: {parts}.",
    "One sees {a_thing}; {parts}, in {font} characters.",
    "{A_thing}, its main text in {color} {font} characters; {parts}.",
    "{A_thing} with {color} text set {how}; {parts}.",
    "An illustration of {a_thing}, in which {parts}.",
    "{A_thing} with the text {quotes}.",
    "A {noun} that says {quotes}.",
)

FONTS = {
    "sans": ("黑体字", "sans-serif"), "serif": ("宋体字", "serif"), "kai": ("楷体字", "regular-script"),
    "round": ("圆体字", "rounded"), "hand": ("手写体字", "handwritten"), "other": ("文字", "Chinese"),
}  # fmt: skip
WAYS = {
    "h": ("横排", "horizontally"), "v": ("竖排", "vertically"), "a": ("沿弧线", "along an arc"),
    "b": ("首行沿弧线", "with the first line along an arc"),
}  # fmt: skip
NUMBERS_ZH = "零一两三四五六七八九十"
# Layout: what it is, with the colours that it names, and a short noun.
THINGS = {
    "poster": (
        "一张{ground}底色的海报，带有{accent}的图形装饰",
        "poster on {a_ground} ground with {accent} shapes", "海报", "poster",
    ),
    "couplet": (
        "一扇双开门两侧贴着{paper}的春联，门上方贴着横批",
        "double door with {paper} spring couplets on both sides and a strip above", "春联", "spring couplet",
    ),
    "list": (
        "一张{ground}底色的价目表，{accent}边框", "price list on {a_ground} ground with a {accent} frame",
        "价目表", "price list",
    ),
    "notice": (
        "一张{paper}的告示用图钉钉在{ground}的墙板上", "{paper} notice pinned to a {ground} board", "告示", "notice",
    ),
    "shop": (
        "一家店铺的门面，{ground}砖墙上挂着{paper}的招牌",
        "shop front with a {paper} signboard on a {ground} brick wall", "店铺招牌", "shop sign",
    ),
    "road": ("道路旁立着一块{paper}的路牌", "{paper} road sign beside a road", "路牌", "road sign"),
    "banner": (
        "{ground}的墙前挂着一条{paper}的横幅", "{paper} cloth banner in front of a {ground} wall", "横幅", "banner",
    ),
    "photograph": (
        "一张海报，上半部分是照片{scene}，下半部分是{ground}底色",
        "poster with a photograph{scene} above and {a_ground} field below", "海报", "poster",
    ),
    "photograph below": (
        "一张海报，上半部分是{ground}底色，下半部分是照片{scene}",
        "poster with {a_ground} field above and a photograph{scene} below", "海报", "poster",
    ),
    "road sign": (
        "虚化的背景前立着一块{paper}的路牌", "{paper} road sign in front of a blurred background", "路牌", "road sign",
    ),
    "neon": (
        "夜晚的深色砖墙上亮着霓虹灯字", "neon sign glowing on a dark brick wall at night", "霓虹灯招牌", "neon sign",
    ),
}  # fmt: skip


def captions(spec: Spec, world: World) -> dict[str, str]:
    """The captions `zh` and `en`, and which templates wrote them (`zh_template`, `en_template`)."""
    tier, say = spec["tier"], spec["say"]
    if tier == "pure":
        zh, en = PURE_ZH, PURE_EN
    elif tier == "structured":
        zh, en = STRUCTURED_ZH, STRUCTURED_EN
    else:
        bare = not say["carrier"]
        zh, en = (COMPOSED_BARE_ZH, COMPOSED_BARE_EN) if bare else (COMPOSED_ZH, COMPOSED_EN)
        tier = "bare" if bare else "composed"
    slots_zh, slots_en = _slots(spec, world)
    at_zh, at_en = say["zh"] % len(zh), say["en"] % len(en)
    return {
        "zh": zh[at_zh].format_map(slots_zh),
        "en": _sentence(en[at_en].format_map(slots_en)),
        "zh_template": f"{tier}-zh-{at_zh:02}",
        "en_template": f"{tier}-en-{at_en:02}",
    }


def texts(spec: Spec) -> list[str]:
    """The lines of a spec in reading order: what the picture says."""
    return [line["t"] for line in spec["lines"]]


class English(dict[str, str]):
    """Slots of a template; of `slot` it also makes `Slot` (a sentence begins), `a_slot` and `A_slot` (with article)."""

    def __missing__(self, key: str) -> str:
        if key.startswith("a_"):
            return _a(self[key[2:]])
        if key.startswith("A_"):
            slot = key[2:]
            return _sentence(self[slot] if slot == "carrier" else _a(self[slot]))
        if key.islower():
            raise KeyError(key)
        return _sentence(self[key.lower()])


def _slots(spec: Spec, world: World) -> tuple[dict[str, str], dict[str, str]]:
    say, lines = spec["say"], spec["lines"]
    en = English()
    zh: dict[str, str] = {}
    for slot, key in (("ground", "ground"), ("paper", "paper"), ("accent", "accent"), ("color", "ink")):
        if key in say:
            en[slot], zh[slot] = name(colored(say[key]))
    if "grad" in lines[0]:
        end_en, end_zh = name(colored(lines[0]["grad"]))
        if end_zh != zh["color"]:
            en["color"], zh["color"] = f"{en['color']}-to-{end_en}", f"{zh['color']}渐变{end_zh}"
    main = next((line for line in lines if line["r"] != "title"), lines[0]) if spec["layout"] == "list" else lines[0]
    zh["font"], en["font"] = FONTS[world.by_id[main["f"]].kind]
    zh["how"], en["how"] = WAYS[say["way"]]
    zh["place"], en["place"] = place_of(say["box"], spec["size"])
    words = texts(spec)
    zh["quotes"] = "".join(f"“{text}”" for text in words)
    en["quotes"] = _listed([f'"{text}"' for text in words])
    zh["says"], en["reads"] = _said(words, say["way"], zh["quotes"], en["quotes"])
    en["read"] = en["reads"].replace("reads", "read", 1)
    en["reading"] = en["reads"].replace("reads", "reading", 1)
    if spec["ground"]["kind"] == "photo":
        photograph = world.photographs[spec["ground"]["id"]]
        zh["base"] = photograph.zh or "一张照片"
        en["base"] = photograph.en or "A photograph"
        zh["scene"] = f"（{photograph.zh}）" if photograph.zh else ""
        en["scene"] = f" ({photograph.en[:1].lower()}{photograph.en[1:]})" if photograph.en else ""
    if spec["tier"] == "composed":
        if say["carrier"]:
            paper = name(colored(say["paper"]))
            zh["carrier"], en["carrier"] = {
                "panel": (f"一块半透明的{paper[1]}色块", f"{_a(paper[0])} translucent panel"),
                "sign": (f"一块{paper[1]}的牌子", f"{_a(paper[0])} sign"),
                "wood": (f"一块{paper[1]}的木牌", f"{_a(paper[0])} wooden sign"),
            }[say["carrier"]]
    elif spec["tier"] == "structured":
        thing_zh, thing_en, zh["noun"], en["noun"] = THINGS[_thing(spec)]
        zh["thing"] = thing_zh.format_map(zh)
        en["thing"] = thing_en.format_map(en)
        if "wall" in say:
            wall_en, wall_zh = name(colored(say["wall"]))
            zh["thing"] = f"{wall_zh}的墙上贴着{zh['thing']}"
            en["thing"] += f", put up on {_a(wall_en)} wall"
        zh["parts"], en["parts"] = _parts(spec)
    return zh, en


def _thing(spec: Spec) -> str:
    """The key of THINGS: a layout, or a kind of it that looks different."""
    if spec["ground"]["kind"] != "photo":
        return str(spec["layout"])
    if spec["layout"] == "road":
        return "road sign"
    return "photograph" if spec["say"]["photograph"] == "top" else "photograph below"


def _said(words: list[str], way: str, quotes_zh: str, quotes_en: str) -> tuple[str, str]:
    """The verb and the quotations: the order is told where there is one."""
    if len(words) == 1:
        return f"写着{quotes_zh}", f"reads {quotes_en}"
    count = NUMBERS_ZH[len(words)] if len(words) < len(NUMBERS_ZH) else str(len(words))
    if way == "v":
        return f"写着{count}列字，从右到左依次是{quotes_zh}", f"reads, from right to left, {quotes_en}"
    return f"写着{count}行字，从上到下依次是{quotes_zh}", f"reads, from top to bottom, {quotes_en}"


def _parts(spec: Spec) -> tuple[str, str]:
    """What each part of a structured layout says."""
    roles: dict[str, list[str]] = {}
    for line in spec["lines"]:
        roles.setdefault(line["r"], []).append(line["t"])
    layout = spec["layout"]
    if layout == "couplet":
        (right,), (left,), (above,) = roles["right"], roles["left"], roles["above"]
        leaves = roles.get("leaf", [])
        return (
            f"右联写着“{right}”，左联写着“{left}”，横批是“{above}”" + (f"，门上贴着“{leaves[0]}”字" if leaves else ""),
            f'the right strip reads "{right}", the left strip reads "{left}" and the strip above reads "{above}"'
            + (f', and each leaf of the door bears a diamond with "{leaves[0]}"' if leaves else ""),
        )
    if layout == "list":
        rows = list(zip(roles["item"], roles["price"], strict=True))
        return (
            f"标题是“{roles['title'][0]}”，下面依次列出" + "、".join(f"“{item}”“{price}”" for item, price in rows),
            f'the title reads "{roles["title"][0]}" and below are listed '
            + _listed([f'"{item}" at "{price}"' for item, price in rows]),
        )
    zh, en = [], []
    for role, chinese, english in ROLES.get(layout, ROLES["poster"]):
        if role in roles:
            zh.append(chinese + "".join(f"“{text}”" for text in roles[role]))
            en.append(f"{english} " + _listed([f'"{text}"' for text in roles[role]]))
    return "，".join(zh), _listed(en)


ROLES = {
    "poster": (
        ("title", "标题是", "the title reads"), ("under", "副标题是", "the line below it reads"),
        ("detail", "其余文字是", "the smaller text reads"),
    ),
    "notice": (
        ("title", "标题是", "the heading reads"), ("detail", "正文依次是", "the lines read"),
        ("date", "落款日期是", "the date reads"),
    ),
    "shop": (
        ("title", "招牌上写着", "the sign reads"),
        ("under", "招牌上的小字是", "the small letters under it on the sign read"),
        ("detail", "橱窗上写着", "the window reads"),
    ),
    "road": (
        ("title", "牌上写着", "the sign reads"), ("under", "下面的英文是", "below it"),
        ("detail", "最下面是", "at its foot"),
    ),
    "banner": (("line", "横幅上写着", "the banner reads"),),
    "neon": (("title", "大字是", "the large letters read"), ("under", "下面的小字是", "the small ones below read")),
}  # fmt: skip


def _listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def _a(phrase: str) -> str:
    return f"{'an' if phrase[:1] in 'aeiou' else 'a'} {phrase}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
