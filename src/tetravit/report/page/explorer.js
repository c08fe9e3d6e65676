// One picture, one or two models, and what they predict: drawn on a canvas, listed beside it.
// The script after this one defines `source`: begin() -> {models, limits, about, note}; refuses(file) -> why, or "";
// predict(model, least, most) -> a prediction as `tetravit predict --json` prints it; explain(model, method) -> a blob.
const $ = (id) => document.getElementById(id);
const LOWEST = 0.05; // score of objects that are predicted; the slider goes on from there
const MOST = 10; // classes that are listed
const SIDE = [640, 1280]; // pixels of the long side of a canvas, at least and at most
const PIXELS = 160; // sides below are shown with their pixels
const NAMES = 12; // pixels of the page: the letters of names on a picture, at least
const NOUNS = { classify: "classifier", detect: "detector", segment: "segmenter" };
const state = { models: [], limits: {}, file: null, bitmap: null, panels: [], turn: 0 };

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const named = (name) => state.models.find((model) => model.name === name);
function say(text) { $("status").textContent = text; }
const weight = (bytes) => (bytes < 1024 ? `${bytes} bytes` : `${(bytes / 1024).toFixed(0)} KiB`);
function fail(text) {
  $("alert").textContent = text;
  $("alert").hidden = !text;
}

// COCO's run lengths, packed or as numbers -> spans of a canvas: [column, first row, row after the last] for each run of each column.
function counts(text) {
  if (typeof text !== "string") return text;
  const runs = [];
  for (let i = 0; i < text.length; ) {
    let value = 0, place = 0, more = true;
    while (more) {
      const code = text.charCodeAt(i++) - 48;
      value |= (code & 31) << (5 * place++);
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << (5 * place);
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}
function spans(mask, width, height) {
  const [rows, columns] = mask.size, strips = [];
  const shown = Array.from({ length: columns }, () => []);
  for (let x = 0; x < width; x++) shown[Math.min(columns - 1, Math.floor(((x + 0.5) * columns) / width))].push(x);
  const row = (y) => Math.ceil((y * height) / rows - 0.5);
  let at = 0;
  counts(mask.counts).forEach((count, i) => {
    for (let start = at; i % 2 && start < at + count; ) {
      const column = Math.floor(start / rows), end = Math.min(at + count, (column + 1) * rows);
      const first = row(start - column * rows), last = row(end - column * rows);
      if (last > first) for (const x of shown[column]) strips.push([x, first, last]);
      start = end;
    }
    at += count;
  });
  return strips;
}

class Panel {
  constructor(model) {
    this.model = model;
    this.hidden = new Set();
    this.prediction = null;
    this.picture = null; // of the explanation
    this.card = make("section", "card");
    this.card.setAttribute("aria-label", model.name);
    this.noun = NOUNS[model.task] || model.task;
    this.about = make("p", "note", this.noun);
    this.canvas = make("canvas");
    this.canvas.setAttribute("role", "img");
    this.list = make("ul", "results");
    this.list.tabIndex = 0;
    this.list.setAttribute("aria-label", `Results of ${model.name}`);
    const shown = make("div", "shown");
    shown.append(this.canvas, this.list);
    this.card.append(make("h2", "", model.name), this.about, shown);
  }
  colour(name) {
    return this.model.colours[this.model.class_names.indexOf(name)] || "#888888";
  }
  async predict() {
    this.card.setAttribute("aria-busy", "true");
    this.about.textContent = `${this.noun}: predicting`;
    const start = performance.now(), turn = state.turn;
    try {
      const prediction = await source.predict(this.model, LOWEST, MOST);
      if (turn !== state.turn) return;
      this.prediction = prediction;
      this.about.textContent =
        `${this.noun}, ${prediction.width} x ${prediction.height} pixels, ${Math.round(performance.now() - start)} ms`;
      this.measure();
      this.show();
    } finally {
      this.card.removeAttribute("aria-busy");
    }
  }
  async explain(method) {
    this.picture = null;
    const turn = state.turn;
    if (method && (this.model.explain || []).some((row) => row.name === method)) {
      const picture = await createImageBitmap(await source.explain(this.model, method));
      if (turn !== state.turn) return;
      this.picture = picture;
    }
    this.measure();
    this.draw();
  }
  measure() {
    const { width, height } = this.prediction, long = Math.max(width, height);
    const scale = Math.min(SIDE[1], Math.max(SIDE[0], long)) / long;
    this.figure = this.picture && Math.abs((this.picture.width * height) / (this.picture.height * width) - 1) > 0.03;
    if (this.figure) return void Object.assign(this.canvas, { width: this.picture.width, height: this.picture.height });
    this.canvas.width = Math.max(1, Math.round(width * scale));
    this.canvas.height = Math.max(1, Math.round(height * scale));
    for (const row of [...(this.prediction.objects || []), ...(this.prediction.classes || [])]) {
      if (row.segmentation) row.spans = spans(row.segmentation, this.canvas.width, this.canvas.height);
    }
  }
  get seen() {
    const { objects, classes, top } = this.prediction, least = Number($("score").value);
    if (objects) return objects.filter((o) => o.score >= least && !this.hidden.has(o.class));
    return classes ? classes.filter((c) => !this.hidden.has(c.class)) : top;
  }
  show() {
    this.draw();
    const { top, objects, classes } = this.prediction;
    if (top) this.list.replaceChildren(...top.map((row, i) => this.bar(row.class, row.score, i === 0)));
    if (objects) {
      const least = Number($("score").value), groups = new Map();
      for (const o of objects) if (o.score >= least) groups.set(o.class, [...(groups.get(o.class) || []), o]);
      const rows = [...groups].map(([name, group]) =>
        this.toggle(name, group.length > 1 ? `${group.length}, up to ${percent(group[0].score)}` : percent(group[0].score)));
      this.list.replaceChildren(...(rows.length ? rows : [make("li", "sub", `No object with a score of ${least.toFixed(2)} or more.`)]));
    }
    if (classes) this.list.replaceChildren(...classes.map((row) => this.toggle(row.class, percent(row.share))));
    this.canvas.setAttribute("aria-label", `${this.model.name}: ${this.sentence()}`);
  }
  sentence() {
    const { top, objects } = this.prediction, seen = this.seen;
    if (top) return seen.slice(0, 3).map((row) => `${row.class} ${percent(row.score)}`).join(", ");
    if (!objects) return seen.slice(0, 5).map((row) => `${row.class} ${percent(row.share)} of the picture`).join(", ");
    const groups = new Map();
    for (const o of seen) groups.set(o.class, (groups.get(o.class) || 0) + 1);
    return groups.size ? [...groups].map(([name, count]) => `${count} ${name}`).join(", ") : "no object";
  }
  bar(name, score, likely) {
    const item = make("li", likely ? "likely" : ""), line = make("div", "line"), bar = make("div", "bar"), part = make("i");
    line.append(make("span", "name", name), make("span", "figure", percent(score)));
    part.style.width = `${100 * score}%`;
    bar.append(part);
    bar.setAttribute("aria-hidden", "true");
    item.append(line, bar);
    return item;
  }
  toggle(name, figure) {
    const item = make("li", this.hidden.has(name) ? "off" : ""), label = make("label"), box = make("input");
    const swatch = make("span", "swatch");
    swatch.style.background = this.colour(name);
    Object.assign(box, { type: "checkbox", checked: !this.hidden.has(name) });
    box.addEventListener("change", () => {
      box.checked ? this.hidden.delete(name) : this.hidden.add(name);
      item.className = box.checked ? "" : "off";
      this.draw();
      say(`${name} ${box.checked ? "shown" : "hidden"}`);
    });
    label.append(box, swatch, make("span", "name", name), make("span", "figure", figure));
    item.append(label);
    return item;
  }
  draw() {
    if (!this.prediction) return;
    const { width, height } = this.canvas, pen = this.canvas.getContext("2d");
    const base = this.picture || state.bitmap;
    pen.clearRect(0, 0, width, height);
    pen.imageSmoothingEnabled = Math.max(this.prediction.width, this.prediction.height) > PIXELS;
    pen.imageSmoothingQuality = "high";
    if (base) pen.drawImage(base, 0, 0, width, height);
    if (this.prediction.top || this.figure) return; // a figure of its own has no places of the picture
    const seen = this.seen.slice().reverse(); // the highest score on top
    if ($("masks").checked) {
      pen.globalAlpha = Number($("strength").value);
      for (const row of seen) {
        pen.fillStyle = this.colour(row.class);
        for (const [x, first, last] of row.spans || []) pen.fillRect(x, first, 1, last - first);
      }
      pen.globalAlpha = 1;
    }
    if (this.prediction.objects) this.outline(pen, seen);
  }
  // Boxes and names, the highest score on top. A name takes the first place at its box that no better one has.
  outline(pen, seen) {
    const scale = this.canvas.width / this.prediction.width;
    const dense = this.canvas.width / (this.canvas.clientWidth || this.canvas.width); // pixels of the canvas per pixel of the page
    const size = Math.round(Math.max(NAMES * dense, this.canvas.width / 52)), high = size + Math.round(0.6 * size), names = [];
    pen.lineWidth = Math.max(1.5 * dense, this.canvas.width / 320);
    pen.font = `600 ${size}px system-ui, sans-serif`;
    pen.textBaseline = "middle";
    for (const row of seen.slice().reverse()) { // the highest score first
      const [x, y, w, h] = row.bbox.map((side) => side * scale), text = `${row.class} ${Math.round(100 * row.score)} %`;
      const wide = pen.measureText(text).width + 0.8 * size, left = Math.max(0, Math.min(x, this.canvas.width - wide));
      const places = [y - high, y, y + h - high, y + h].filter((top) => top >= 0 && top + high <= this.canvas.height);
      const clear = (top) => names.every((n) => top + high <= n.top || n.top + high <= top || left + wide <= n.left || n.left + n.wide <= left);
      const top = places.find(clear) ?? places[0] ?? 0;
      names.push({ text, wide, left, top, box: [x, y, w, h], colour: this.colour(row.class) });
    }
    names.reverse();
    for (const { box, colour } of $("boxes").checked ? names : []) {
      pen.strokeStyle = colour;
      pen.strokeRect(...box);
    }
    for (const { text, wide, left, top, colour } of $("names").checked ? names : []) {
      pen.fillStyle = colour;
      pen.fillRect(left, top, wide, high);
      const [r, g, b] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
      pen.fillStyle = 0.3 * r + 0.59 * g + 0.11 * b > 140 ? "#14181f" : "#ffffff";
      pen.fillText(text, left + 0.4 * size, top + high / 2 + 1);
    }
  }
}

async function load(file) {
  if (!file) return;
  fail("");
  const refusal = source.refuses(file);
  if (refusal) return fail(refusal);
  state.file = file;
  try { state.bitmap = await createImageBitmap(file); } catch { state.bitmap = null; }
  $("drop").classList.add("small");
  $("drop").querySelector(".invite").hidden = true;
  $("limits").textContent = `${file.name || "Picture"}, ${weight(file.size)}. Drop, paste or choose another one at any time.`;
  await run();
}

async function run() {
  if (!state.file) return;
  const turn = ++state.turn, names = [$("model").value, $("other").value].filter(Boolean);
  const panels = names.map((name) => new Panel(named(name)));
  say("Predicting.");
  try {
    await Promise.all(panels.map((panel) => panel.predict()));
    if (turn !== state.turn) return;
    state.panels = panels;
    $("panels").classList.toggle("two", panels.length > 1);
    $("panels").replaceChildren(...panels.map((panel) => panel.card));
    adapt();
    for (const panel of panels) panel.draw(); // at the width that it has on the page
    if ($("explain").value) await Promise.all(panels.map((panel) => panel.explain($("explain").value)));
    fail("");
    if (!state.bitmap) fail("This browser cannot show the format of the picture; the prediction is drawn without it.");
    say(panels.map((panel) => `${panel.model.name}: ${panel.sentence()}`).join("; "));
  } catch (error) {
    if (turn !== state.turn) return;
    state.panels = [];
    $("panels").replaceChildren();
    $("controls").hidden = true;
    say("");
    fail(error.message);
  }
}

// Show the controls that the models on the page have.
function adapt() {
  const models = state.panels.map((panel) => panel.model), has = (test) => models.some(test);
  const objects = has((m) => m.task === "detect"), masks = has((m) => m.masks);
  $("controls").hidden = false;
  for (const [id, wanted] of [["score-field", objects], ["boxes-field", objects], ["names-field", objects], ["masks-field", masks], ["strength-field", masks], ["layers", objects || masks]]) {
    $(id).hidden = !wanted;
  }
  const methods = [...new Map(models.flatMap((m) => m.explain || []).map((row) => [row.name, row])).values()];
  const chosen = $("explain").value;
  $("explain").replaceChildren(new Option("nothing", ""), ...methods.map((row) => new Option(row.name, row.name)));
  $("explain").value = methods.some((row) => row.name === chosen) ? chosen : "";
  $("explain-field").hidden = !methods.length;
}
function showValues() {
  $("score-value").textContent = Number($("score").value).toFixed(2);
  $("strength-value").textContent = `${Math.round(100 * $("strength").value)} %`;
}

function save(blob, end) {
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${(state.file.name || "picture").replace(/\.\w+$/, "")}-${end}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
function savePicture() {
  const canvases = state.panels.map((panel) => panel.canvas), sheet = make("canvas"), gap = 16;
  sheet.width = canvases.reduce((sum, c) => sum + c.width, gap * (canvases.length - 1));
  sheet.height = Math.max(...canvases.map((c) => c.height));
  let x = 0;
  for (const canvas of canvases) {
    sheet.getContext("2d").drawImage(canvas, x, 0);
    x += canvas.width + gap;
  }
  sheet.toBlob((blob) => save(blob, "predicted.png"), "image/png");
}
function facts() {
  const least = Number($("score").value);
  return {
    image: state.file.name || "picture",
    models: state.panels.map((panel) => {
      const { top, objects, classes, ...rest } = panel.prediction, seen = panel.seen.map(({ spans: _, ...row }) => row);
      const filter = { hidden: [...panel.hidden], ...(objects ? { score: least } : {}) };
      return { ...rest, filter, [top ? "top" : objects ? "objects" : "classes"]: seen };
    }),
  };
}

async function camera() {
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return fail(`The camera cannot be used: ${error.message || error.name}.`);
  }
  $("shot").showModal();
  await $("video").play();
}
function stop() {
  for (const track of $("video").srcObject?.getTracks() || []) track.stop();
  $("video").srcObject = null;
  if ($("shot").open) $("shot").close();
}
function take() {
  const video = $("video"), canvas = make("canvas");
  Object.assign(canvas, { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  stop();
  canvas.toBlob((blob) => load(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.95);
}

function wire() {
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { load($("file").files[0]); $("file").value = ""; });
  $("camera").addEventListener("click", camera);
  $("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  $("take").addEventListener("click", take);
  $("stop").addEventListener("click", stop);
  $("shot").addEventListener("close", stop);
  const over = (on) => $("drop").classList.toggle("over", on);
  for (const name of ["dragenter", "dragover"]) document.addEventListener(name, (event) => { event.preventDefault(); over(true); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    over(false);
    const file = event.dataTransfer.files[0];
    if (file) load(file); else fail("That is no picture file. Addresses are not fetched: save the picture and drop the file.");
  });
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files][0];
    if (file) load(file);
  });
  $("model").addEventListener("change", run);
  $("other").addEventListener("change", run);
  $("explain").addEventListener("change", () =>
    Promise.all(state.panels.map((panel) => panel.explain($("explain").value))).catch((error) => fail(error.message)));
  $("score").addEventListener("input", () => { showValues(); for (const panel of state.panels) panel.show(); });
  $("score").addEventListener("change", () => say(state.panels.map((panel) => `${panel.model.name}: ${panel.sentence()}`).join("; ")));
  $("strength").addEventListener("input", () => { showValues(); for (const panel of state.panels) panel.draw(); });
  for (const id of ["boxes", "names", "masks"]) $(id).addEventListener("change", () => { for (const panel of state.panels) panel.draw(); });
  addEventListener("resize", () => { for (const panel of state.panels) panel.draw(); });
  $("save-png").addEventListener("click", savePicture);
  $("save-json").addEventListener("click", () => save(new Blob([JSON.stringify(facts(), null, 1)], { type: "application/json" }), "predicted.json"));
}

async function begin() {
  showValues();
  wire();
  try {
    Object.assign(state, await source.begin());
  } catch (error) {
    $("about").textContent = "";
    return fail(error.message);
  }
  const { models } = state;
  $("about").textContent = models.map((m) => `${m.name}: ${NOUNS[m.task] || m.task}, ${m.class_names.length} classes`).join("; ");
  $("limits").textContent = state.note;
  $("model").replaceChildren(...models.map((m) => new Option(m.name, m.name)));
  $("other").replaceChildren(new Option("nothing", ""), ...models.map((m) => new Option(m.name, m.name)));
  $("model-field").hidden = $("other-field").hidden = models.length < 2;
}
