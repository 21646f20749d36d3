"""Rendered Chinese text: pictures whose every character is known, with captions that quote it.

    curate synth -o SYNTH -n 2000 --backgrounds STORE

    spec(seed, index, attempt)  ->  render  ->  check  ->  caption  ->  Parquet shards

Every step is a pure function and everything is keyed by (seed, index): the same bytes in any order, on any number of
workers, with access to any index. docs/synth.md shows the pictures and the figures.

Columns of the shards `SYNTH/shards/synth-00000.parquet`, on which the main job and the mixer rely:

    image             binary         JPEG; absent with --specs-only, null in an infeasible row
    caption           string         synth_caption_zh or synth_caption_en, by a keyed coin: the main job's caption_raw
    language          string         zh or en: the language of `caption` (the quoted text stays as drawn in both)
    source            string         `synth`: the pool that a mix caps
    synth_caption_zh  string         Chinese caption, quotes every line that it claims verbatim
    synth_caption_en  string         English caption, the same quotations
    synth_texts       list<string>   the lines as drawn, in reading order: what the picture really says
    synth_tier        string         pure, composed or structured
    synth_layout      string         plain, panel, sign, poster, couplet, list, ...
    synth_index       int64          index of the sample: with the seed it makes the row again
    synth_spec        string         JSON of under 2 kB from which the picture is rendered again
    synth_spec_sha    string         SHA-256 of synth_spec: the same on every platform
    synth_lines       list<list<float>>   [x1, y1, ... x4, y4] of each line of synth_texts, px, clockwise from its start
    synth_glyphs      list<list<float>>   the same of each visible character, line by line
    synth_contrast    float          smallest contrast of a glyph against what surrounds it, 1..21
    synth_attempts    int32          how often it was drawn until every check passed, 1..8
    synth_refused     int32          texts that a face was refused for: one character is missing in it
    synth_template_zh string         which template wrote the Chinese caption
    synth_template_en string         the same in English
    synth_reason      string         why the row is infeasible; null in all others

In the store of a main job over these shards they keep these names (none clashes with an operator's column).

    words.py        lexicon from installed dictionaries or a corpus; the sampler with its floor under rare characters
    fonts.py        faces, what each covers, which of a collection is Simplified Chinese
    draw.py         keyed random numbers
    colors.py       named colours, contrast
    photographs.py  backgrounds: a store's photographs, or those that installed packages carry
    spec.py         what is drawn: a small JSON of whole numbers
    layouts/        plain text, text on photographs, things of print and of the street
    render.py       spec to pixels and quads, with canvas.py, grounds.py, shapes.py, fittings.py, lines.py, planes.py
    check.py        contrast of every glyph, ink inside quads and picture
    captions.py     templates in two languages
    sample.py       attempts until every check passes
    shards.py       the command's run: shards, manifest
    pool.py         worker processes
    again.py        pictures from stored specs
    verify.py       OCR round trip, paired with a clean render
    report.py       the HTML report
"""
