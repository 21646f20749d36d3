// The picture: fit or enlarged, moved by pointer or arrows. Pictures that come next wait here decoded.

const STEPS = [0.25, 0.5, 1, 2, 4];
const ARROW_PX = 80;

export class Viewer {
  constructor(stage, onchange) {
    this.stage = stage;
    this.onchange = onchange;
    this.img = null;
    this.task = null;
    this.scale = 0; // image pixels per device pixel; 0: fit
    this.x = this.y = 0;
    this.pointers = new Map();
    stage.addEventListener("pointerdown", (event) => this.#down(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => this.#up(event));
    stage.addEventListener("dblclick", (event) => {
      if (event.target === this.img) this.toggle();
    });
    stage.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !this.scale) return;
      event.preventDefault();
      this.step(event.deltaY < 0 ? 1 : -1);
    }, { passive: false });
    new ResizeObserver(() => this.#place()).observe(stage);
  }

  // Show a decoded <img>; the one before it goes.
  show(img, task, alt) {
    const before = this.img;
    this.img = img;
    this.task = task;
    this.scale = this.x = this.y = 0;
    img.className = "shown";
    img.alt = alt;
    img.draggable = false;
    this.#place();
    if (img.parentNode !== this.stage) this.stage.prepend(img);
    if (before && before !== img) before.remove();
    this.onchange();
  }

  clear() {
    this.img?.remove();
    this.img = this.task = null;
    this.onchange();
  }

  toggle() {
    this.zoom(this.scale ? 0 : 1);
  }

  step(by) {
    if (!this.img) return;
    const now = this.scale || this.fitted;
    const next = by > 0 ? STEPS.find((s) => s > now * 1.01) : STEPS.findLast((s) => s < now * 0.99);
    if (next) this.zoom(next <= this.fitted && by < 0 ? 0 : next);
  }

  zoom(scale) {
    if (!this.img) return;
    this.scale = scale;
    if (!scale) this.x = this.y = 0;
    // Faults are judged on the file itself: enlarged, the picture is the original and not its preview.
    const full = `/api/leases/${this.task.lease}/original`;
    if (scale && !this.img.src.endsWith(full)) {
      const img = this.img;
      const sharp = new Image();
      sharp.src = full;
      sharp.decode().then(() => {
        if (this.img === img) img.src = full;
      }, () => {});
    }
    this.#place();
    this.onchange();
  }

  // Image pixels per device pixel when the picture fits.
  get fitted() {
    if (!this.img || !this.task) return 1;
    const box = this.#box();
    return (box.width * devicePixelRatio) / this.task.width;
  }

  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#place();
  }

  key(name) {
    if (name === "Escape" && this.scale) this.zoom(0);
    else if (name === "+" || name === "=") this.step(1);
    else if (name === "-") this.step(-1);
    else if (this.scale && name === "ArrowLeft") this.pan(ARROW_PX, 0);
    else if (this.scale && name === "ArrowRight") this.pan(-ARROW_PX, 0);
    else if (this.scale && name === "ArrowUp") this.pan(0, ARROW_PX);
    else if (this.scale && name === "ArrowDown") this.pan(0, -ARROW_PX);
    else return false;
    return true;
  }

  // How large the fitted picture is, CSS px; never larger than its own pixels.
  #box() {
    const edge = this.stage.clientWidth > 700 ? 40 : 0;
    const clientWidth = this.stage.clientWidth - edge;
    const clientHeight = this.stage.clientHeight - edge;
    const own = { width: this.task.width / devicePixelRatio, height: this.task.height / devicePixelRatio };
    const by = Math.min(clientWidth / own.width, clientHeight / own.height, Math.max(1, devicePixelRatio));
    return { width: own.width * by, height: own.height * by };
  }

  #place() {
    if (!this.img) return;
    const fit = this.#box();
    this.img.style.width = `${fit.width}px`;
    this.img.style.height = `${fit.height}px`;
    if (!this.scale) {
      this.img.style.transform = "";
      this.stage.classList.remove("zoomed");
      return;
    }
    const by = this.scale / this.fitted;
    const slack = {
      x: Math.max(0, (fit.width * by - this.stage.clientWidth) / 2),
      y: Math.max(0, (fit.height * by - this.stage.clientHeight) / 2),
    };
    this.x = Math.min(Math.max(this.x, -slack.x), slack.x);
    this.y = Math.min(Math.max(this.y, -slack.y), slack.y);
    this.img.style.transform = `translate(${this.x}px, ${this.y}px) scale(${by})`;
    this.stage.classList.add("zoomed");
  }

  #down(event) {
    if (!this.img || event.target !== this.img || event.button) return;
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    this.stage.setPointerCapture(event.pointerId);
    if (this.pointers.size === 2) this.pinch = { gap: this.#gap(), scale: this.scale || this.fitted };
  }

  #move(event) {
    const from = this.pointers.get(event.pointerId);
    if (!from) return;
    const to = { x: event.clientX, y: event.clientY };
    this.pointers.set(event.pointerId, to);
    if (this.pointers.size === 2 && this.pinch) {
      const scale = (this.pinch.scale * this.#gap()) / this.pinch.gap;
      this.zoom(scale <= this.fitted * 1.02 ? 0 : Math.min(scale, STEPS.at(-1)));
    } else if (this.scale) {
      this.pan(to.x - from.x, to.y - from.y);
    }
  }

  #up(event) {
    this.pointers.delete(event.pointerId);
    if (this.pointers.size < 2) this.pinch = null;
  }

  #gap() {
    const [a, b] = [...this.pointers.values()];
    return Math.max(1, Math.hypot(a.x - b.x, a.y - b.y));
  }
}
