// Which action a key press means. Pure functions: tests/test_rate_browser.py calls them in a browser.

export const DEFAULTS = {
  tier1: "1", tier2: "2", tier3: "3", tier4: "4", tier5: "5", undo: "u", skip: "s", zoom: "z", fit: "f",
  captions: "c", ground: "g", show: "v", help: "?",
};

// The character that a press stands for, whatever the layout and the input method. Full-width digits and letters are
// what Chinese keyboards give; the digit row of a French keyboard gives & é " ' ( and its key says where it lies; with an
// input method switched on the browser names no character at all and the key is what is left.
export function character(event) {
  if (event.key.length === 1) {
    const plain = event.key.normalize("NFKC").toLowerCase();
    if (/^[a-z0-9]$/.test(plain)) return plain;
    const digit = !event.shiftKey && /^(?:Digit|Numpad)([0-9])$/.exec(event.code ?? "");
    if (digit) return digit[1];
    return plain;
  }
  if (event.key === "Process" || event.key === "Unidentified") {
    const place = /^(?:Key([A-Z])|(?:Digit|Numpad)([0-9]))$/.exec(event.code ?? "");
    if (place) return (place[1] ?? place[2]).toLowerCase();
  }
  return event.key;
}

// Presses that are not meant for us: text being typed or composed, a modifier held, a key held down.
export function foreign(event) {
  if (event.isComposing || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return true;
  const target = event.target;
  return Boolean(target?.closest?.("input:not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]"));
}

// The keys in force, {name: key}, for actions and for the flags of a rubric (`flag:watermark`): what the person chose,
// else the default; a key does one thing, so a flag whose default is taken has none until it is given one.
export function effective(chosen, flags) {
  const keys = { ...DEFAULTS };
  for (const action of Object.keys(DEFAULTS)) keys[action] = chosen[action] ?? keys[action];
  const taken = new Set(Object.values(keys));
  for (const { flag, key } of flags) {
    const wanted = chosen[`flag:${flag}`] ?? key;
    keys[`flag:${flag}`] = taken.has(wanted) ? "" : wanted;
    taken.add(wanted);
  }
  return keys;
}

// {action} | {flag} | null. Backspace is always undo; Escape, arrows and + = - are the viewer's.
export function meaning(event, keys) {
  const typed = character(event);
  if (typed === "Backspace") return { action: "undo" };
  const name = Object.keys(keys).find((one) => keys[one] === typed);
  if (!name) return null;
  return name.startsWith("flag:") ? { flag: name.slice(5) } : { action: name };
}

// A binding that somebody wants: a problem (a name in the catalog) or null.
export function usable(key, name, keys) {
  if (!/^[a-z0-9,./;'[\]\\`?]$/.test(key)) return "rate.keys.unusable";
  return Object.entries(keys).some(([other, used]) => other !== name && used === key) ? "rate.keys.taken" : null;
}
