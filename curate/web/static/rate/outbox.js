// Answers on their way to the server: in IndexedDB first, so that neither a reload nor a dead server loses one.
//
// An answer is durable in the browser before the page goes on, and is removed when the server says that it is on its
// disk. Each has a key of its own, so that one which is sent twice is stored once. Answers of all campaigns of a person
// go, in the order in which they were given, from whichever page is open; those of another person who used this browser
// stay until that person is back. An answer that the server refuses is not removed: it is kept to be saved as a file.

const FIRST_WAIT_MS = 500;
const MOST_WAIT_MS = 15000;
const BATCH = 20;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const finished = (change) =>
  new Promise((resolve, reject) => {
    change.oncomplete = resolve;
    change.onabort = change.onerror = () => reject(change.error);
  });

function opened() {
  const request = indexedDB.open("curate-ratings", 1);
  request.onupgradeneeded = () => {
    const answers = request.result.createObjectStore("answers", { keyPath: "order", autoIncrement: true });
    answers.createIndex("whose", ["person", "campaign"]);
  };
  return done(request);
}

export class Outbox extends EventTarget {
  // `send(campaign, answers)` resolves to the server's results, or rejects: {status} from the server, anything else the
  // network. `campaign` is the one whose page this is; null on other pages.
  constructor(person, campaign, send) {
    super();
    this.person = person;
    this.campaign = campaign;
    this.send = send;
    this.db = null;
    this.waiting = []; // in the order given; each {order, campaign, answer, task}
    this.refused = []; // the same, with {refused: why}
    this.offline = false;
    this.signedOut = false;
    this.sending = false;
    this.wait = FIRST_WAIT_MS;
    this.timer = 0;
  }

  async open() {
    try {
      this.db = await opened();
      const whose = IDBKeyRange.bound([this.person], [this.person, []]); // of any campaign
      const found = await done(this.db.transaction("answers").objectStore("answers").index("whose").getAll(whose));
      found.sort((a, b) => a.order - b.order);
      this.waiting = found.filter((entry) => !entry.refused);
      this.refused = found.filter((entry) => entry.refused);
    } catch {
      this.db = null;
    }
    addEventListener("online", () => this.flush(true));
    return this;
  }

  get durable() {
    return this.db !== null;
  }

  get count() {
    return this.waiting.length;
  }

  // What waits for the campaign of this page.
  get here() {
    return this.waiting.filter((entry) => entry.campaign === this.campaign);
  }

  // Leases that have an answer here: the server is not to give them out again.
  get leases() {
    return this.here.map((entry) => entry.answer.lease).filter(Boolean);
  }

  // Store an answer; resolves once it is safe. Without IndexedDB that is when the server has it.
  async add(answer, task) {
    const entry = { person: this.person, campaign: this.campaign, answer, task };
    if (!this.db) {
      const [result] = await this.send(this.campaign, [answer]);
      if (result?.status === "refused") this.refused.push({ ...entry, refused: result.message });
      this.#changed();
      return;
    }
    const change = this.#write(this.offline);
    const request = change.objectStore("answers").add(entry);
    await finished(change);
    entry.order = request.result;
    this.waiting.push(entry);
    this.#changed();
    this.flush();
  }

  // Send what is waiting; at once (`now`), even when a failure has asked for patience or the session was over.
  flush(now = false) {
    if (now) {
      clearTimeout(this.timer);
      this.timer = 0;
      this.wait = FIRST_WAIT_MS;
      this.signedOut = false;
    }
    if (this.sending || this.timer || !this.waiting.length || this.signedOut) return;
    this.sending = true;
    this.#deliver().finally(() => {
      this.sending = false;
      this.#changed();
      if (this.waiting.length && !this.timer && !this.signedOut) this.flush();
    });
  }

  async #deliver() {
    const { campaign } = this.waiting[0];
    const other = this.waiting.findIndex((entry) => entry.campaign !== campaign);
    let batch = this.waiting.slice(0, Math.min(BATCH, other < 0 ? BATCH : other));
    try {
      let results;
      try {
        results = await this.send(campaign, batch.map((entry) => entry.answer));
      } catch (why) {
        if (why.status !== 422 && why.status !== 404) throw why;
        // One of them is not understood, or the campaign is not the person's any more: each is sent alone, so that it
        // does not hold up the others.
        batch = batch.slice(0, 1);
        results = await this.send(campaign, [batch[0].answer]).catch((one) => {
          if (one.status !== 422 && one.status !== 404) throw one;
          return [{ key: batch[0].answer.key, status: "refused", message: one.message }];
        });
      }
      this.offline = false;
      this.wait = FIRST_WAIT_MS;
      const known = new Map(results.map((result) => [result.key, result]));
      const settled = batch.filter((entry) => known.has(entry.answer.key));
      for (const entry of settled) {
        const result = known.get(entry.answer.key);
        if (result.status === "refused") entry.refused = result.message;
      }
      await this.#settle(settled);
    } catch (why) {
      if (why.status === 401) {
        this.signedOut = true;
      } else {
        if (!this.offline && this.waiting.length) this.#write(true).objectStore("answers").put(this.waiting.at(-1));
        this.offline = true;
        this.timer = setTimeout(() => {
          this.timer = 0;
          this.flush();
        }, this.wait);
        this.wait = Math.min(this.wait * 2, MOST_WAIT_MS);
      }
    }
  }

  // A transaction over the answers. The server has an answer on its disk some milliseconds after it was given, so it
  // is enough here that it outlives the browser. When the server cannot be reached it has to outlive a power cut:
  // `strict` waits for the disk, for everything that was written before, too (25 ms; a third of what a picture may take).
  #write(strict = false) {
    return this.db.transaction("answers", "readwrite", { durability: strict ? "strict" : "relaxed" });
  }

  // Remove what the server has; keep what it does not want.
  async #settle(entries) {
    const change = this.#write();
    const answers = change.objectStore("answers");
    for (const entry of entries) {
      if (entry.refused) answers.put(entry);
      else answers.delete(entry.order);
    }
    await finished(change);
    this.waiting = this.waiting.filter((entry) => !entries.includes(entry));
    this.refused.push(...entries.filter((entry) => entry.refused));
  }

  // The refused answers as text of a file.
  get refusedText() {
    return this.refused.map((entry) => JSON.stringify(entry)).join("\n") + "\n";
  }

  // Forget the refused answers, once somebody has them as a file or does not want them.
  async forget() {
    if (this.db) {
      const change = this.#write();
      for (const entry of this.refused) change.objectStore("answers").delete(entry.order);
      await finished(change);
    }
    this.refused = [];
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
