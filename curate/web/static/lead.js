// Live numbers of a campaign's page. Without this the page shows how things stood when it was loaded.

const EVERY_MS = 3000;
const box = document.getElementById("standing");
const at = (id) => document.getElementById(id);
const number = new Intl.NumberFormat(document.documentElement.lang);

async function look() {
  if (document.hidden) return;
  const answer = await fetch(`/api/campaigns/${box.dataset.campaign}/standing`).catch(() => null);
  if (!answer?.ok) return;
  const now = await answer.json();
  for (const name of ["done", "votes", "last_hour", "raters_now", "unsettled"]) at(name).textContent = number.format(now[name]);
  const share = now.images ? (100 * now.done) / now.images : 0;
  at("share").textContent = `${Math.round(share)} %`;
  at("ring").setAttribute("stroke-dasharray", `${share} 100`);
  const most = Math.max(...now.tiers, 1);
  now.tiers.forEach((count, i) => {
    at(`tier${i + 1}`).textContent = number.format(count);
    at(`bar${i + 1}`).setAttribute("width", (100 * count) / most);
  });
}

if (box) setInterval(look, EVERY_MS);
