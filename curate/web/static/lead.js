// Live numbers of a campaign's page. Without this the page shows how things stood when it was loaded.

const EVERY_MS = 3000;
const box = document.getElementById("standing");
const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat(document.documentElement.lang);
const percent = (share) => Math.round(100 * share);

function put(id, text) {
  if (at(id)) at(id).textContent = text;
}

async function look() {
  if (document.hidden) return;
  const answer = await fetch(`/api/campaigns/${box.dataset.campaign}/standing`).catch(() => null);
  if (!answer?.ok) return;
  const now = await answer.json();
  for (const name of ["done", "votes", "last_hour", "raters_now", "disputed", "kept"]) put(name, number.format(now[name]));
  const hours = now.hours_left;
  put("hours_left", hours === null ? "–" : hours < 1 ? box.dataset.minutes.replace("{n}", Math.round(60 * hours)) : box.dataset.hours.replace("{n}", hours.toFixed(1)));
  const { value, low, high } = now.keep;
  put("keep", value === null ? "" : ` · ${percent(value)} % (${percent(low)}–${percent(high)})`);
  put("expected", value === null ? "–" : number.format(Math.round(value * now.images)));
  put("cost", now.kept ? (now.votes / now.kept).toFixed(1) : "–");
  const share = now.images ? (100 * now.done) / now.images : 0;
  put("share", `${Math.round(share)} %`);
  at("ring").setAttribute("stroke-dasharray", `${share} 100`);
  const most = Math.max(...now.tiers, 1);
  now.tiers.forEach((count, i) => {
    put(`tier${i + 1}`, number.format(count));
    at(`bar${i + 1}`).setAttribute("width", (100 * count) / most);
  });
}

if (box) setInterval(look, EVERY_MS);
