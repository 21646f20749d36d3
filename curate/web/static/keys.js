// Keys for the explore pages. Everything works without them; nothing happens while one types or holds a modifier.

const cards = () => [...document.querySelectorAll(".grid .card a")];

function move(step) {
  const all = cards();
  const at = all.indexOf(document.activeElement);
  const next = all[at < 0 ? 0 : Math.min(Math.max(at + step, 0), all.length - 1)];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

// Cards in the first line of the grid, which is how far down one is.
function columns() {
  const all = cards();
  const top = all[0]?.getBoundingClientRect().top;
  return Math.max(all.filter((card) => card.getBoundingClientRect().top === top).length, 1);
}

function follow(rel) {
  const link = document.querySelector(`a[rel=${rel}]`);
  if (link) location.assign(link.href);
  return Boolean(link);
}

const grid = {
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  ArrowUp: () => move(-columns()),
  ArrowDown: () => move(columns()),
  n: () => follow("next"),
  p: () => follow("prev"),
  "/": () => document.querySelector("input[name=where]")?.focus(),
};
const row = {
  ArrowLeft: () => follow("prev"),
  ArrowRight: () => follow("next"),
  g: () => location.assign("/"),
};

addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
  if (typing || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
  const keys = document.querySelector(".grid") ? grid : document.querySelector(".rowhead") ? row : { "/": grid["/"] };
  const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});
