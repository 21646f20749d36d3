// Answers that wait in this browser, on the list of campaigns: they are sent from here, too, whatever campaign they are of.

import { begin, sendAnswers } from "./call.js";
import { Outbox } from "./outbox.js";

const box = document.getElementById("waiting");
begin(box.dataset.csrf, Number(box.dataset.person));
const outbox = new Outbox(Number(box.dataset.person), null, async (campaign, answers) => (await sendAnswers(campaign, answers)).results);

function show() {
  const { count, refused } = outbox;
  box.hidden = !count && !refused.length;
  box.querySelector("[data-waiting]").hidden = !count;
  box.querySelector("[data-refused]").hidden = !refused.length;
  for (const [name, number] of [["waiting", count], ["refused", refused.length]]) {
    const line = box.querySelector(`[data-${name}]`);
    line.querySelector("span").textContent = line.dataset[number === 1 ? "one" : "text"].replace("{n}", number);
  }
  const why = refused.at(-1)?.refused ?? "";
  box.querySelector("[data-why]").textContent = why;
}

outbox.addEventListener("change", show);
await outbox.open();
show();
outbox.flush(true);
addEventListener("focus", () => outbox.flush(true));
box.querySelector("[data-send]").onclick = () => outbox.flush(true);
box.querySelector("[data-save]").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([outbox.refusedText], { type: "application/x-ndjson" }));
  link.download = "curate-answers.jsonl";
  link.click();
};
box.querySelector("[data-forget]").onclick = () => outbox.forget();
