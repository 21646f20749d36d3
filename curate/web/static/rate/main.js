// The rating page: one key rates, the next picture is already there.
//
// Pictures are asked for and decoded AHEAD of time. An answer goes into the outbox (outbox.js) and the page goes on when
// it is safe there; the network is never waited for. Nothing is rated before it has been painted.

import { begin, call, sendAnswers } from "./call.js";
import { character, effective, foreign, meaning, usable } from "./keys.js";
import { Outbox } from "./outbox.js";
import { Viewer } from "./viewer.js";

const AHEAD = 8;
const LOOK_AGAIN_MS = 15000;
const TRIES = 3;

const config = JSON.parse(document.getElementById("config").textContent);
const at = (id) => document.getElementById(id);
const { campaign, rubric } = config;
const settings = { ground: "grey", captions: "both", keys_on: true, veil: true, keys: {}, ...config.person.settings };
let language = config.language;
let keys = effective(settings.keys, rubric.flags);
begin(config.csrf, config.person.id);

const line = []; // tasks to come: {lease, width, height, captions, img, ready}
let current = null; // the task on the screen, with `painted` (ms) once it is
let said = config.history; // own last answers, oldest first: {key, kind, tier, flags, task}
let flags = new Set();
let busy = false;
let fetching = false;
let progress = config.progress;
let today = 0; // answers of this day that were not taken back, here and elsewhere
let streak = 0;
let exhausted = false;
let lookAgain = 0;
let hiddenSince = 0;
let pressed = 0; // when the last answer was given, for the time to the next paint
let stamp = 0; // when the browser saw the key or the pointer that is being handled
let paintMs = null;
let alarmKey = "";

// words

function t(key, values = {}) {
  let text = config.words[language][key] ?? key;
  for (const [name, value] of Object.entries(values)) text = text.replaceAll(`{${name}}`, String(value));
  return text;
}

const number = (value) => new Intl.NumberFormat(language === "zh" ? "zh-CN" : "en").format(value);
const tierWords = (tier) => rubric.tiers[tier - 1];

function say(text) {
  at("said").textContent = text;
}

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// network

const outbox = new Outbox(config.person.id, campaign.id, async (of, answers) => {
  const stored = await sendAnswers(of, answers);
  if (of === campaign.id) {
    progress = stored.progress;
    showProgress();
  }
  return stored.results;
});

async function habit() {
  const found = await call("GET", `/api/me/habit?utc_offset_min=${-new Date().getTimezoneOffset()}`).catch(() => null);
  if (!found) return;
  const waits = outbox.waiting.filter(({ answer: a }) => a.kind === "vote").length - outbox.waiting.filter(({ answer: a }) => a.undoes).length;
  today = found.today + waits;
  streak = found.streak;
  showProgress();
}

// the line of pictures to come

async function refill() {
  if (fetching || exhausted || line.length >= AHEAD) return;
  fetching = true;
  const held = [...line.map((task) => task.lease), ...(current ? [current.lease] : []), ...outbox.leases];
  try {
    const have = [...new Set(held)].slice(0, 64);
    const want = Math.min(have.length + AHEAD - line.length + (current ? 0 : 1), 24);
    const given = await call("POST", `/api/campaigns/${campaign.id}/tasks`, { want, have });
    progress = given.progress;
    if (outbox.signedOut) outbox.flush(true);
    const known = new Set([...line.map((task) => task.lease), current?.lease, ...outbox.leases]);
    const fresh = given.tasks.filter((task) => !known.has(task.lease));
    for (const task of fresh) prepare(task);
    line.push(...fresh);
    exhausted = fresh.length === 0 && want > have.length;
    showProgress();
    if (!current) next();
    else if (fresh.length) setTimeout(refill);
  } catch (why) {
    if (why.status === 401) outbox.signedOut = true;
    showState();
    if (!current) wait();
    setTimeout(() => { fetching = false; refill(); }, 2000);
    return;
  }
  fetching = false;
  if (exhausted) scheduleLook();
}

function scheduleLook() {
  clearTimeout(lookAgain);
  lookAgain = setTimeout(() => { exhausted = false; refill(); }, LOOK_AGAIN_MS);
}

// Fetch and decode a picture; `ready` resolves to true, or to false when it does not show.
function prepare(task) {
  const img = new Image();
  img.decoding = "sync"; // it is decoded by then: the swap paints it in the next frame and not in some later one
  task.img = img;
  const started = performance.now();
  const load = async (left) => {
    img.src = `/api/leases/${task.lease}/preview`;
    try {
      await img.decode();
      task.decodeMs = performance.now() - started;
      return true;
    } catch {
      if (left <= 1) return false;
      await new Promise((again) => setTimeout(again, 800));
      img.removeAttribute("src");
      return load(left - 1);
    }
  };
  task.ready = load(TRIES);
}

// the picture on the screen

const viewer = new Viewer(at("stage"), () => {
  at("zoomlevel").textContent = viewer.scale ? `${Math.round(viewer.scale * 100)} %` : t("rate.fit");
  at("pixels").textContent = viewer.task ? `${viewer.task.width} × ${viewer.task.height}` : "";
  at("zoombar").hidden = !viewer.task;
});

function next() {
  const task = line.shift();
  if (task) show(task);
  else {
    current = null;
    viewer.clear();
    veil();
    enable();
    wait();
  }
  refill();
}

function wait() {
  const key = outbox.signedOut || outbox.offline || !navigator.onLine ? "rate.offline"
    : progress.state !== "running" ? `rate.${progress.state}` : exhausted ? "rate.empty" : "rate.waiting";
  at("wait").textContent = t(key) + (key === "rate.empty" ? ` ${t("rate.empty.later")}` : "");
  at("wait").hidden = false;
  showCaptions();
}

async function show(task, before = null) {
  current = task;
  task.painted = 0;
  task.hiddenMs = 0;
  veil();
  flags = new Set(before?.flags ?? []);
  enable();
  let ready = null;
  // A picture that is decoded is swapped in within this very task; only one that is not makes us wait.
  if (task.decodeMs === undefined) {
    at("wait").textContent = t("rate.waiting");
    const slow = setTimeout(() => { viewer.clear(); at("wait").hidden = false; }, 150);
    ready = await task.ready;
    clearTimeout(slow);
    if (current !== task) return;
    if (!ready) {
      viewer.clear();
      at("wait").textContent = t("rate.broken");
      at("wait").hidden = false;
      task.broken = true;
      enable();
      showCaptions();
      return;
    }
  }
  at("wait").hidden = true;
  viewer.show(task.img, task, task.captions[language] ?? task.captions.raw ?? t("rate.picture"));
  showCaptions();
  for (const button of at("tiers").children) button.classList.toggle("was", Number(button.dataset.tier) === before?.tier);
  showFlags();
  requestAnimationFrame(() => {
    const painted = new MessageChannel();
    painted.port1.onmessage = () => {
      if (current !== task || task.painted) return;
      task.painted = performance.now();
      if (pressed) {
        paintMs = task.painted - pressed;
        performance.measure("key to paint", { start: pressed, end: task.painted });
        pressed = 0;
      }
      enable();
    };
    painted.port2.postMessage(0);
  });
}

// A picture that is probably unsafe is veiled until its rater wants to see it; "unsafe" can be said without that.
function veil() {
  const veiled = Boolean(current?.risky && settings.veil && !current.unveiled);
  at("stage").classList.toggle("veiled", veiled);
  at("veil").hidden = !veiled;
  at("veil").firstElementChild.textContent = t("rate.veil");
  return veiled;
}

function unveil() {
  if (current) current.unveiled = true;
  veil();
}

// answers

function unique() {
  return crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");
}

async function answer(kind, fields, by) {
  const task = current;
  if (!task || busy || (kind === "vote" && !task.painted)) return;
  if (kind === "vote" && fields.tier !== rubric.unsafe_tier && veil()) {
    at("veil").firstElementChild.textContent = t("rate.veiled", { tier: rubric.unsafe_tier });
    say(t("rate.veiled", { tier: rubric.unsafe_tier }));
    return;
  }
  busy = true;
  pressed = stamp || performance.now();
  const seconds = task.painted ? Math.min((pressed - task.painted - task.hiddenMs) / 1000, 3600) : null;
  const box = task.img?.getBoundingClientRect();
  const made = {
    key: unique(), kind, lease: task.lease, rubric_version: rubric.version,
    seconds: seconds === null ? null : Math.max(0, Number(seconds.toFixed(3))), ...fields,
    seen: {
      dpr: devicePixelRatio, shown: [Math.round(box?.width ?? 0), Math.round(box?.height ?? 0)], zoomed: viewer.scale > 0,
      ground: settings.ground, captions: settings.captions, language, by, hidden_s: task.hiddenMs / 1000,
      paint_ms: paintMs, decode_ms: task.decodeMs ?? null, client_ms: Date.now(),
    },
  };
  try {
    await outbox.add(made, plain(task));
  } catch {
    pressed = 0;
    busy = false;
    alarm("rate.unsent");
    return;
  }
  said = [...said, { key: made.key, kind, tier: fields.tier, flags: fields.flags ?? [], task }].slice(-10);
  busy = false;
  if (kind === "vote") {
    today += 1;
    progress.mine += 1;
    say(t("rate.said", { tier: fields.tier, name: tierWords(fields.tier).name[language], left: number(Math.max(0, progress.images - progress.done)) }));
  } else say(t("rate.skipped"));
  next();
  // The rest of the page can wait until the picture is painted.
  requestAnimationFrame(() => setTimeout(() => {
    showLast();
    showProgress();
  }));
}

const plain = ({ lease, width, height, captions, risky }) => ({ lease, width, height, captions, risky });
const rate = (tier, by) => answer("vote", { tier, flags: [...flags].sort() }, by);
const skip = (reason) => answer("skip", { reason }, "key");

async function undo() {
  const last = said.at(-1);
  if (!last || busy) {
    if (!busy) say(t("rate.noundo"));
    return;
  }
  busy = true;
  try {
    await outbox.add({ key: unique(), kind: "undo", undoes: last.key, rubric_version: rubric.version, seen: { client_ms: Date.now() } }, null);
  } catch {
    busy = false;
    alarm("rate.unsent");
    return;
  }
  said = said.slice(0, -1);
  if (last.kind === "vote") {
    today -= 1;
    progress.mine -= 1;
  }
  if (current) line.unshift(current);
  if (!last.task.img) prepare(last.task);
  exhausted = false;
  busy = false;
  say(t("rate.undone"));
  pressed = 0;
  show(last.task, last);
  showLast();
  showProgress();
}

function toggleFlag(flag) {
  if (!current) return;
  if (!flags.delete(flag)) flags.add(flag);
  showFlags();
}

// what the page shows

let focused = null; // the tier that had the focus when it was switched off: it is to have it again

function enable() {
  const can = Boolean(current?.painted);
  if (!can) focused = document.activeElement.closest("[data-tier]") ?? focused;
  for (const button of at("tiers").children) button.disabled = !can;
  if (can && focused) {
    if (document.activeElement === document.body) focused.focus({ preventScroll: true });
    focused = null;
  }
  at("skip").disabled = !current;
  at("undo").disabled = !said.length;
}

function showFlags() {
  for (const button of at("flags")?.children ?? []) button.setAttribute("aria-pressed", flags.has(button.dataset.flag));
}

function showCaptions() {
  const box = at("captions");
  box.replaceChildren();
  if (!current) return;
  if (rubric.criterion) {
    box.append(...captionsOf(current));
    return;
  }
  if (settings.captions === "none" || campaign.captions === "hidden") return;
  if (campaign.captions === "after") {
    if (Object.keys(current.captions).length) box.append(make("p", "note", t("rate.captions.later")));
    return;
  }
  box.append(...captionsOf(current));
}

// A column for each language, that of the page first.
function captionsOf(task) {
  const columns = new Map((language === "zh" ? ["zh", "en"] : ["en", "zh"]).map((tongue) => [tongue, make("div")]));
  for (const [code, kind] of [["en", "rate.written"], ["zh", "rate.translated"], ["raw", "rate.raw"]]) {
    const text = task.captions[code];
    const tongue = code === "raw" ? (/\p{Script=Han}/u.test(text ?? "") ? "zh" : "en") : code;
    if (!text || (!rubric.criterion && settings.captions !== "both" && settings.captions !== tongue)) continue;
    const quote = make("blockquote");
    const words = make("p", "", text);
    words.lang = tongue === "zh" ? "zh-Hans" : "en";
    words.dir = "auto";
    quote.append(words, make("footer", "", t(rubric.criterion ? "rate.judged" : kind)));
    columns.get(tongue).append(quote);
  }
  return [...columns.values()].filter((column) => column.childElementCount);
}

function showLast() {
  const last = said.at(-1);
  const box = at("last");
  box.hidden = !last;
  box.replaceChildren();
  if (!last) return;
  const small = make("img", (last.task.risky && settings.veil) || last.tier === rubric.unsafe_tier ? "thumb veil" : "thumb");
  small.src = `/api/leases/${last.task.lease}/preview`;
  small.alt = "";
  const words = make("div");
  const what = last.kind === "skip" ? t("rate.skipped") : `${last.tier} · ${tierWords(last.tier).name[language]}`;
  words.append(make("span", "note", t("rate.last")), make("b", last.tier ? `t${last.tier}` : "", what));
  if (last.flags.length) {
    const names = last.flags.map((flag) => rubric.flags.find((one) => one.flag === flag)?.name[language] ?? flag);
    words.append(make("span", "note", names.join(", ")));
  }
  if (campaign.captions === "after") words.append(...captionsOf(last.task));
  box.append(small, words);
}

function showProgress() {
  const { images, done, mine } = progress;
  at("fill").style.width = `${images ? (100 * done) / images : 0}%`;
  at("progress").replaceChildren(
    make("span", "long", t("rate.progress", { done: number(done), images: number(images), mine: number(mine) })),
    make("span", "short", `${number(done)} / ${number(images)}`),
  );
  at("habit").textContent = t("rate.today", { n: number(today) }) + (streak > 1 ? ` · ${t("rate.streak", { n: streak })}` : "");
}

function showState() {
  const { count } = outbox;
  const offline = outbox.offline || !navigator.onLine;
  const state = at("state");
  state.className = `state ${outbox.signedOut || offline ? "bad" : count ? "busy" : "good"}`;
  state.textContent = offline ? t("rate.unsaved.offline", { n: count }) : count ? t("rate.unsaved", { n: count }) : t("rate.saved");
  state.dataset.count = count;
  const { refused } = outbox;
  if (outbox.signedOut) alarm("rate.signedout", { n: count }, [signIn]);
  else if (refused.length) alarm("rate.refused", { n: refused.length, why: refused.at(-1).refused }, [saveRefused, forgetRefused]);
  else if (!outbox.durable) alarm("rate.nostore");
  else if (["rate.signedout", "rate.refused"].includes(alarmKey)) alarm("");
}

// What an alarm offers to do.

function signIn() {
  const link = make("a", "button", t("rate.signin"));
  link.href = `/login?next=${encodeURIComponent(location.pathname)}`;
  return link;
}

function saveRefused() {
  const link = make("a", "button", t("rate.refused.save"));
  link.href = URL.createObjectURL(new Blob([outbox.refusedText], { type: "application/x-ndjson" }));
  link.download = "curate-answers.jsonl";
  return link;
}

function forgetRefused() {
  const button = make("button", "icon", t("rate.refused.forget"));
  button.type = "button";
  button.onclick = () => outbox.forget();
  return button;
}

let alarmSaid = "";

function alarm(key, values = {}, offers = []) {
  const one = `${key}.one`;
  const text = key ? t(values.n === 1 && config.words[language][one] ? one : key, values) : "";
  alarmKey = key;
  if (text === alarmSaid) return;
  alarmSaid = text;
  const box = at("alarm");
  box.hidden = !text;
  if (!text) return;
  const close = make("button", "icon", "×");
  close.type = "button";
  close.setAttribute("aria-label", t("rate.close"));
  close.onclick = () => { box.hidden = true; };
  box.replaceChildren(make("span", "", text), ...offers.map((offer) => offer()), close);
}

function showWords() {
  document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-title]")) element.title = t(element.dataset.tTitle);
  if (at("subject")) at("subject").textContent = rubric.title[language];
  at("language").textContent = language === "zh" ? "English" : "中文";
  at("language").lang = language === "zh" ? "en" : "zh-Hans";
  for (const button of at("tiers").children) {
    const words = tierWords(Number(button.dataset.tier));
    button.querySelector(".name").textContent = words.name[language];
    button.querySelector(".meaning").textContent = words.about[language];
  }
  for (const button of at("flags")?.children ?? [])
    button.querySelector("span").textContent = rubric.flags.find((one) => one.flag === button.dataset.flag).name[language];
  at("zoomlevel").textContent = viewer.scale ? `${Math.round(viewer.scale * 100)} %` : t("rate.fit");
  alarmSaid = "";
  showKeys();
  showCaptions();
  showLast();
  showProgress();
  showState();
  showHelp();
  if (!current) wait();
}

function showKeys() {
  keys = effective(settings.keys, rubric.flags);
  for (const cap of document.querySelectorAll("kbd[data-key]")) cap.textContent = keys[cap.dataset.key].toUpperCase();
  document.body.classList.toggle("nokeys", !settings.keys_on);
  const shortcut = (name) => (settings.keys_on ? keys[name] : "");
  for (const button of at("tiers").children) button.setAttribute("aria-keyshortcuts", shortcut(`tier${button.dataset.tier}`));
  for (const button of at("flags")?.children ?? []) button.setAttribute("aria-keyshortcuts", shortcut(`flag:${button.dataset.flag}`));
  for (const action of ["undo", "skip", "zoom", "help"]) at(action).setAttribute("aria-keyshortcuts", shortcut(action));
}

function showHelp() {
  at("helptitle").textContent = rubric.title[language];
  at("rubric").replaceChildren(...rubric.tiers.map((tier) => {
    const section = make("section", `t${tier.tier}`);
    const head = make("h3");
    head.append(make("kbd", "", keys[`tier${tier.tier}`].toUpperCase()), make("span", "", tier.name[language]));
    const list = make("ul");
    list.append(...tier.criteria[language].map((text) => make("li", "", text)));
    section.append(head, make("p", "", tier.about[language]), list);
    const pictures = config.exemplars.filter((one) => one.tier === tier.tier);
    if (pictures.length) {
      const strip = make("div", "exemplars");
      strip.append(...pictures.map((one) => {
        const img = make("img", one.tier === rubric.unsafe_tier ? "veil" : "");
        img.loading = "lazy";
        img.alt = `${tier.tier} · ${tier.name[language]}`;
        img.src = `/api/campaigns/${campaign.id}/exemplars/${one.id}`;
        return img;
      }));
      section.append(strip);
    }
    return section;
  }));
  const rows = [...config.actions.map((action) => [keys[action].toUpperCase(), `rate.key.${action}`]),
    [rubric.flags.map((one) => keys[`flag:${one.flag}`].toUpperCase()).join(" ").trim(), "rate.key.flags"],
    ["+ −", "rate.key.plusminus"], ["← → ↑ ↓", "rate.key.arrows"]].filter(([key]) => key);
  at("keylist").replaceChildren(...rows.map(([key, text]) => {
    const pair = make("div");
    const term = make("dt");
    term.append(...key.split(" ").map((one) => make("kbd", "", one)));
    pair.append(term, make("dd", "", t(text)));
    return pair;
  }));
}

// settings

async function store(changes) {
  Object.assign(settings, changes);
  await call("PUT", "/api/me/settings", changes).catch(() => {});
}

function ground(which) {
  document.body.dataset.ground = which;
  store({ ground: which });
}

function captions(which) {
  store({ captions: which });
  showCaptions();
}

function openSettings() {
  const sheet = at("settingssheet");
  for (const input of sheet.querySelectorAll("input[type=radio]")) input.checked = settings[input.name] === input.value;
  at("keyson").checked = settings.keys_on;
  at("veilon").checked = settings.veil;
  showBindings();
  sheet.showModal();
}

function showBindings() {
  const names = [...config.actions, ...rubric.flags.map((one) => `flag:${one.flag}`)];
  const about = (name) => (name.startsWith("flag:") ? rubric.flags.find((one) => `flag:${one.flag}` === name).name[language] : t(`rate.key.${name}`));
  at("bindings").replaceChildren(...names.map((name) => {
    const button = make("button", "binding");
    button.type = "button";
    button.dataset.binding = name;
    button.append(make("kbd", "", keys[name].toUpperCase() || "–"), make("span", "", about(name)));
    button.onclick = () => {
      button.querySelector("kbd").textContent = "…";
      button.querySelector("span").textContent = t("rate.keys.press");
      button.onkeydown = (event) => {
        if (event.key === "Tab") return;
        event.preventDefault();
        event.stopPropagation();
        button.onkeydown = null;
        const key = character(event);
        const problem = event.key === "Escape" ? null : usable(key, name, keys);
        at("keyproblem").hidden = !problem;
        at("keyproblem").textContent = problem ? t(problem, { key }) : "";
        if (!problem && event.key !== "Escape") {
          store({ keys: { ...settings.keys, [name]: key } });
          showKeys();
          showHelp();
        }
        showBindings();
        at("bindings").querySelector(`[data-binding="${name}"]`).focus();
      };
    };
    return button;
  }));
}

// events

const actions = {
  undo: () => undo(),
  skip: () => current && at("skipsheet").showModal(),
  zoom: () => viewer.toggle(),
  fit: () => viewer.zoom(0),
  captions: () => captions({ both: "en", en: "zh", zh: "none", none: "both" }[settings.captions]),
  ground: () => ground({ grey: "dark", dark: "light", light: "grey" }[settings.ground]),
  show: () => unveil(),
  help: () => at("helpsheet").showModal(),
  ...Object.fromEntries([1, 2, 3, 4, 5].map((tier) => [`tier${tier}`, (by) => rate(tier, by)])),
};

for (const kind of ["keydown", "click"]) addEventListener(kind, (event) => { stamp = event.timeStamp; }, { capture: true });

addEventListener("keydown", (event) => {
  if (foreign(event)) return;
  const sheet = document.querySelector("dialog[open]");
  if (sheet) {
    const typed = character(event);
    if (sheet.id === "skipsheet" && "1234".includes(typed)) {
      event.preventDefault();
      sheet.querySelectorAll("[data-reason]")[Number(typed) - 1].click();
    } else if (sheet.id === "helpsheet" && typed === keys.help) {
      event.preventDefault();
      sheet.close();
    }
    return;
  }
  if (viewer.key(event.key)) {
    event.preventDefault();
    return;
  }
  if (!settings.keys_on) return;
  const meant = meaning(event, keys);
  if (!meant) return;
  event.preventDefault();
  if (meant.flag) toggleFlag(meant.flag);
  else actions[meant.action]("key");
});

at("tiers").addEventListener("click", (event) => {
  const button = event.target.closest("[data-tier]");
  // The second click of a double click would rate the next picture unseen.
  if (button && event.detail < 2) rate(Number(button.dataset.tier), "pointer");
});
at("flags")?.addEventListener("click", (event) => {
  const button = event.target.closest("[data-flag]");
  if (button) toggleFlag(button.dataset.flag);
});
at("undo").onclick = () => undo();
at("skip").onclick = () => actions.skip();
at("veil").onclick = () => unveil();
at("zoom").onclick = () => viewer.toggle();
at("zoomin").onclick = () => viewer.step(1);
at("zoomout").onclick = () => viewer.step(-1);
at("help").onclick = () => actions.help();
at("settings").onclick = openSettings;
at("state").onclick = () => { outbox.flush(true); refill(); };
at("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  store({ language });
  showWords();
  at("stage").focus({ preventScroll: true }); // the next key is for the picture
};
at("skipsheet").addEventListener("click", (event) => {
  const button = event.target.closest("[data-reason]");
  if (!button) return;
  at("skipsheet").close();
  skip(button.dataset.reason);
});
for (const sheet of document.querySelectorAll("dialog")) {
  sheet.querySelector(".close").onclick = () => sheet.close();
  sheet.addEventListener("click", (event) => { if (event.target === sheet) sheet.close(); });
}
at("settingssheet").addEventListener("change", ({ target }) => {
  if (target.name === "ground") ground(target.value);
  else if (target.name === "captions") captions(target.value);
  else if (target.id === "keyson") {
    store({ keys_on: target.checked });
    showKeys();
  } else if (target.id === "veilon") {
    store({ veil: target.checked });
    veil();
    showLast();
  }
});
at("keysreset").onclick = () => {
  store({ keys: {} });
  showKeys();
  showBindings();
  showHelp();
};
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenSince = performance.now();
  else if (hiddenSince) {
    if (current) current.hiddenMs += performance.now() - Math.max(hiddenSince, current.painted ?? 0);
    hiddenSince = 0;
    outbox.flush(true);
    refill();
  }
});
// Somebody may have signed in again in another tab, or the network may be back unannounced.
addEventListener("focus", () => {
  if (!outbox.signedOut && !outbox.offline) return;
  outbox.flush(true);
  exhausted = false;
  refill();
});
addEventListener("offline", () => { showState(); if (!current) wait(); });
addEventListener("online", () => { showState(); exhausted = false; refill(); });
outbox.addEventListener("change", () => { showState(); if (!current) wait(); });

// begin

await outbox.open();
// What was answered before a reload and has not reached the server: an undo reaches it, and its pictures are not shown again.
const undone = new Set(outbox.here.map((entry) => entry.answer.undoes).filter(Boolean));
said = [...said, ...outbox.here.filter((entry) => entry.task).map(({ answer: a, task }) => ({ key: a.key, kind: a.kind, tier: a.tier, flags: a.flags ?? [], task }))]
  .filter((entry, place, all) => !undone.has(entry.key) && all.findIndex((other) => other.key === entry.key) === place)
  .slice(-10);
showWords();
enable();
outbox.flush(true);
habit();
refill();
