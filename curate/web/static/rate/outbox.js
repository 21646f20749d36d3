// Answers on their way to the server: in IndexedDB first, so that neither a reload nor a dead server loses one.
//
// An answer is durable in the browser before the page goes on, and is removed when the server says that it is on its
// disk. Each has a key of its own, so that one which is sent twice is stored once. Answers go in the order in which they
// were given; those of another person who used this browser stay until that person is back.

const FIRST_WAIT_MS = 500;
const MOST_WAIT_MS = 15000;
const BATCH = 20;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
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
  // `send(answers)` resolves to the server's results, or rejects: {status} from the server, anything else the network.
  constructor(person, campaign, send) {
    super();
    this.person = person;
    this.campaign = campaign;
    this.send = send;
    this.db = null;
    this.waiting = []; // in the order given; each {order, answer, task}
    this.refused = [];
    this.offline = false;
    this.signedOut = false;
    this.sending = false;
    this.wait = FIRST_WAIT_MS;
    this.timer = 0;
  }

  async open() {
    try {
      this.db = await opened();
      const whose = IDBKeyRange.only([this.person, this.campaign]);
      this.waiting = await done(this.db.transaction("answers").objectStore("answers").index("whose").getAll(whose));
      this.waiting.sort((a, b) => a.order - b.order);
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

  // Leases that have an answer here: the server is not to give them out again.
  get leases() {
    return this.waiting.map((entry) => entry.answer.lease).filter(Boolean);
  }

  // Store an answer; resolves once it is safe. Without IndexedDB that is when the server has it.
  async add(answer, task) {
    const entry = { person: this.person, campaign: this.campaign, answer, task };
    if (!this.db) {
      const [result] = await this.send([answer]);
      this.#judge(result);
      this.#changed();
      return;
    }
    const change = this.db.transaction("answers", "readwrite", { durability: "relaxed" });
    const request = change.objectStore("answers").add(entry);
    await new Promise((resolve, reject) => {
      change.oncomplete = resolve;
      change.onabort = change.onerror = () => reject(change.error);
    });
    entry.order = request.result;
    this.waiting.push(entry);
    this.#changed();
    this.flush();
  }

  // Send what is waiting; at once (`now`) even when a failure has asked for patience.
  flush(now = false) {
    if (now) {
      clearTimeout(this.timer);
      this.timer = 0;
      this.wait = FIRST_WAIT_MS;
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
    let batch = this.waiting.slice(0, BATCH);
    try {
      let results;
      try {
        results = await this.send(batch.map((entry) => entry.answer));
      } catch (why) {
        if (why.status !== 422) throw why;
        // One of them is not understood: each is sent alone, so that it does not hold up the others.
        batch = batch.slice(0, 1);
        results = await this.send([batch[0].answer]).catch((one) => {
          if (one.status !== 422) throw one;
          return [{ key: batch[0].answer.key, status: "refused", message: one.message }];
        });
      }
      this.offline = false;
      this.wait = FIRST_WAIT_MS;
      const known = new Map(results.map((result) => [result.key, result]));
      const settled = batch.filter((entry) => known.has(entry.answer.key));
      for (const entry of settled) this.#judge(known.get(entry.answer.key));
      await this.#remove(settled);
    } catch (why) {
      if (why.status === 401) {
        this.signedOut = true;
      } else {
        this.offline = true;
        this.timer = setTimeout(() => {
          this.timer = 0;
          this.flush();
        }, this.wait);
        this.wait = Math.min(this.wait * 2, MOST_WAIT_MS);
      }
    }
  }

  #judge(result) {
    if (result?.status === "refused") this.refused.push(result.message);
  }

  async #remove(entries) {
    const change = this.db.transaction("answers", "readwrite");
    for (const entry of entries) change.objectStore("answers").delete(entry.order);
    await new Promise((resolve, reject) => {
      change.oncomplete = resolve;
      change.onabort = change.onerror = () => reject(change.error);
    });
    this.waiting = this.waiting.filter((entry) => !entries.includes(entry));
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
