// A model in this browser: pixels -> the model's input, ONNX Runtime Web, its outputs -> a prediction.
// The numbers of the Python package: pictures are resized in 8 bits with integer weights, divided in float32.
// Loaded as a worker it takes {number, pixels, width, height, least, most} and posts {number, prediction} or {number, why}.

// Resizing

const triangle = (x) => Math.max(0, 1 - Math.abs(x));
function cubic(x, a) {
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? ((a * x - 5 * a) * x + 8 * a) * x - 4 * a : 0;
}
// The pixels and 16-bit weights of each pixel of a side. Source: PyTorch 2.14, UpSampleKernel.cpp, weights of uint8.
function weights(from, to, interpolation, antialias) {
  const scale = from / to, wide = antialias && scale >= 1 ? scale : 1, bicubic = interpolation === "bicubic";
  const support = (bicubic ? 2 : 1) * wide, most = Math.ceil(support) * 2 + 1;
  const filter = bicubic ? (x) => cubic(x, antialias ? -0.5 : -0.75) : triangle;
  const rows = [];
  let largest = 0;
  for (let i = 0; i < to; i++) {
    const centre = scale * (i + 0.5);
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const count = Math.min(Math.max(Math.min(Math.trunc(centre + support + 0.5), from) - first, 0), most);
    const row = Float64Array.from({ length: count }, (_, j) => filter((j + first - centre + 0.5) / wide));
    for (let j = 1; !antialias && j <= support; j++) { // what lies outside counts for the pixel at the edge
      if (first === 0) row[0] += filter(-j - centre + 0.5);
      if (first + count === from) row[count - 1] += filter(from - 1 + j - centre + 0.5);
    }
    const total = row.reduce((sum, value) => sum + value, 0);
    if (total) for (let j = 0; j < count; j++) row[j] /= total;
    for (const value of row) largest = Math.max(largest, value);
    rows.push({ first, row });
  }
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  for (const one of rows) one.row = Int32Array.from(one.row, (v) => Math.trunc(v * 2 ** bits + (v < 0 ? -0.5 : 0.5)));
  return { rows, bits };
}
// One side of bytes [outer, from, inner] -> [outer, to, inner].
function along(bytes, outer, from, inner, to, interpolation, antialias) {
  if (from === to) return bytes;
  const { rows, bits } = weights(from, to, interpolation, antialias), half = 2 ** (bits - 1);
  const resized = new Uint8ClampedArray(outer * to * inner), sums = new Int32Array(inner);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < to; i++) {
      const { first, row } = rows[i];
      sums.fill(half);
      for (let j = 0, at = (o * from + first) * inner; j < row.length; j++) {
        for (let k = 0; k < inner; k++) sums[k] += row[j] * bytes[at++];
      }
      for (let k = 0, at = (o * to + i) * inner; k < inner; k++) resized[at++] = sums[k] >> bits;
    }
  }
  return resized;
}
export function resize(bytes, [height, width], channels, [rows, columns], interpolation, antialias) {
  const narrow = along(bytes, height, width, channels, columns, interpolation, antialias);
  return along(narrow, 1, height, columns * channels, rows, interpolation, antialias);
}

// Preparing a picture

function even(x) { // round half to even, as Python does
  const low = Math.floor(x), rest = x - low;
  return rest === 0.5 ? low + (low % 2 ? 1 : 0) : Math.round(x);
}
function resized([height, width], p) {
  const [rows, columns] = Array.isArray(p.size) ? p.size : [p.size, p.size];
  if (p.mode === "squash") return [rows, columns];
  if (p.mode === "fit") {
    let scale = Math.min(rows, columns) / Math.min(height, width);
    if (p.longest) scale = Math.min(scale, p.longest / Math.max(height, width));
    return [height, width].map((side) => Math.max(1, Math.trunc(side * scale + 0.5)));
  }
  if (Array.isArray(p.size)) {
    const wanted = p.size.map((side) => Math.floor(side / p.crop));
    const scale = Math.max(wanted[0] / height, wanted[1] / width);
    return [height, width].map((side, i) => Math.max(wanted[i], even(side * scale)));
  }
  const short = Math.floor(p.size / p.crop);
  return height <= width
    ? [short, Math.trunc((short * width) / height)]
    : [Math.trunc((short * height) / width), short];
}
// RGBA of a picture -> {data: Float32Array (C, height, width), size: [height, width]}.
export function prepare(rgba, height, width, p) {
  const channels = p.mean.length, count = height * width;
  let bytes = new Uint8ClampedArray(count * channels);
  for (let i = 0; i < count; i++) {
    const [r, g, b] = [rgba[4 * i], rgba[4 * i + 1], rgba[4 * i + 2]];
    if (channels === 1) bytes[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    else [bytes[3 * i], bytes[3 * i + 1], bytes[3 * i + 2]] = [r, g, b];
  }
  let size = resized([height, width], p), top = 0, left = 0;
  bytes = resize(bytes, [height, width], channels, size, p.interpolation, p.mode !== "fit");
  const [rows, columns] = size;
  if (p.mode === "center") {
    size = Array.isArray(p.size) ? p.size : [p.size, p.size];
    const start = (have, need) => (have < need ? -Math.trunc((need - have) / 2) : even((have - need) / 2));
    [top, left] = [start(rows, size[0]), start(columns, size[1])];
  }
  const data = new Float32Array(channels * size[0] * size[1]);
  for (let c = 0, at = 0; c < channels; c++) {
    const mean = Math.fround(p.mean[c]), std = Math.fround(p.std[c]);
    const table = Float32Array.from({ length: 256 }, (_, v) => Math.fround(Math.fround(v / 255) - mean) / std);
    for (let y = top; y < top + size[0]; y++) {
      for (let x = left; x < left + size[1]; x++) {
        const inside = y >= 0 && y < rows && x >= 0 && x < columns;
        data[at++] = table[inside ? bytes[(y * columns + x) * channels + c] : 0];
      }
    }
  }
  return { data, size };
}
// The input with zeros right and below, for models that take sides in steps.
export function padded({ data, size }, channels, least, multiple) {
  const [rows, columns] = size.map((side) => Math.max(least, Math.ceil(side / multiple) * multiple));
  if (rows === size[0] && columns === size[1]) return { data, size };
  const whole = new Float32Array(channels * rows * columns);
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < size[0]; y++) {
      const start = (c * size[0] + y) * size[1];
      whole.set(data.subarray(start, start + size[1]), (c * rows + y) * columns);
    }
  }
  return { data: whole, size: [rows, columns] };
}

// Outputs -> predictions, as `tetravit predict --json` prints them

const tidy = (value, places) => Number(value.toFixed(places));
export function classes(logits, facts, most) {
  const several = (facts.thresholds || []).length === logits.length, top = Math.max(...logits);
  let scores = Array.from(logits, (x) => (several ? 1 / (1 + Math.exp(-x)) : Math.exp(x - top)));
  const total = several ? 1 : scores.reduce((sum, x) => sum + x, 0);
  scores = scores.map((x) => x / total);
  const order = [...scores.keys()].sort((a, b) => scores[b] - scores[a]).slice(0, most);
  return order
    .filter((i) => !several || scores[i] >= facts.thresholds[i])
    .map((index) => ({ index, class: facts.class_names[index], score: tidy(scores[index], 6) }));
}
export function objects(outputs, facts, seen, [height, width], least) {
  const { boxes, scores, labels, valid, masks } = outputs, rows = [];
  const across = width / seen[1], down = height / seen[0];
  for (let i = 0; i < scores.length; i++) {
    if (!valid[i] || scores[i] < least) continue;
    const box = Array.from(boxes.subarray(4 * i, 4 * i + 4), (v, side) => v * (side % 2 ? down : across));
    const index = Number(labels[i]), [x1, y1, x2, y2] = box;
    const row = {
      class: facts.class_names[index],
      category_id: facts.categories[index],
      bbox: [x1, y1, x2 - x1, y2 - y1].map((v) => tidy(v, 2)),
      score: tidy(scores[i], 6),
    };
    if (masks) {
      const cells = masks.length / scores.length;
      row.segmentation = pasted(masks.subarray(cells * i, cells * (i + 1)), box, height, width);
    }
    rows.push(row);
  }
  return rows;
}
// Probabilities in the frame of a box -> COCO's run lengths of the mask, column by column.
function pasted(cells, [x1, y1, x2, y2], height, width) {
  const side = Math.round(Math.sqrt(cells.length)), counts = [];
  const clip = (value, limit) => Math.min(Math.max(value, 0), limit);
  const left = clip(Math.floor(x1) - 1, width), right = clip(Math.ceil(x2) + 1, width);
  const top = clip(Math.floor(y1) - 1, height), bottom = clip(Math.ceil(y2) + 1, height);
  const place = (pixel, low, high) => ((pixel + 0.5 - low) / Math.max(high - low, 1e-6)) * side - 0.5;
  const cell = (row, column) => (row < 0 || column < 0 || row >= side || column >= side ? 0 : cells[row * side + column]);
  let at = 0, on = false;
  for (let x = left; x < right; x++) {
    const u = place(x, x1, x2), column = Math.floor(u), a = u - column;
    for (let y = top; y <= bottom; y++) {
      const v = place(y, y1, y2), row = Math.floor(v), b = v - row;
      const inside = y < bottom && (1 - b) * ((1 - a) * cell(row, column) + a * cell(row, column + 1)) +
        b * ((1 - a) * cell(row + 1, column) + a * cell(row + 1, column + 1)) >= 0.5;
      if (inside === on) continue;
      const here = x * height + y;
      counts.push(here - at);
      [at, on] = [here, inside];
    }
  }
  counts.push(height * width - at);
  return { size: [height, width], counts };
}
// One map (rows, columns) at another size, bilinear between the centres of cells.
function bilinear(map, [rows, columns], [height, width]) {
  if (rows === height && columns === width) return map;
  const places = (from, to) => Array.from({ length: to }, (_, i) => {
    const place = Math.max(0, ((i + 0.5) * from) / to - 0.5), low = Math.floor(place);
    return [low, Math.min(low + 1, from - 1), place - low];
  });
  const across = places(columns, width), larger = new Float32Array(height * width);
  places(rows, height).forEach(([above, below, b], y) => {
    for (let x = 0; x < width; x++) {
      const [left, right, a] = across[x];
      const upper = map[above * columns + left] * (1 - a) + map[above * columns + right] * a;
      const lower = map[below * columns + left] * (1 - a) + map[below * columns + right] * a;
      larger[y * width + x] = upper * (1 - b) + lower * b;
    }
  });
  return larger;
}
// Logits (K, h, w) -> the best class of every pixel, at the size [height, width].
export function labelMap(logits, count, grid, seen, size) {
  const cells = grid[0] * grid[1], best = new Float32Array(size[0] * size[1]).fill(-Infinity);
  const labels = new Uint8Array(best.length);
  for (let k = 0; k < count; k++) {
    const scores = bilinear(bilinear(logits.subarray(k * cells, (k + 1) * cells), grid, seen), seen, size);
    for (let i = 0; i < best.length; i++) if (scores[i] > best[i]) [best[i], labels[i]] = [scores[i], k];
  }
  return labels;
}
export function regions(labels, [height, width], facts) {
  const rows = facts.class_names.map((name, index) => ({ index, class: name, pixels: 0, counts: [], end: 0 }));
  const at = (i) => labels[(i % height) * width + Math.floor(i / height)]; // column by column
  for (let start = 0, i = 1; i <= labels.length; i++) {
    if (i < labels.length && at(i) === at(start)) continue;
    const row = rows[at(start)];
    row.counts.push(start - row.end, i - start);
    row.pixels += i - start;
    start = row.end = i;
  }
  return rows
    .filter((row) => row.pixels)
    .sort((a, b) => b.pixels - a.pixels || a.index - b.index)
    .map(({ index, class: name, pixels, counts, end }) => ({
      index,
      class: name,
      share: tidy(pixels / labels.length, 6),
      segmentation: { size: [height, width], counts: [...counts, labels.length - end] },
    }));
}

// The model

const SHOWN = 1280; // pixels of the long side of a label map, at most
const bytes = async (name) => {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} cannot be loaded from this site (status ${response.status}).`);
  return response;
};
export class Model {
  static async open() {
    const facts = await (await bytes("model.json")).json();
    const ort = await import(new URL("ort.js", import.meta.url));
    ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
    ort.env.wasm.wasmBinary = await (await bytes("ort.wasm")).arrayBuffer();
    const file = new Uint8Array(await (await bytes("model.onnx")).arrayBuffer());
    const session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    return Object.assign(new Model(), { facts, ort, session });
  }
  // Prepared images (1, C, height, width), and of detectors the size without padding -> outputs by name.
  async run(data, size, seen = size) {
    const { ort, facts } = this, given = {};
    given.images = new ort.Tensor("float32", data, [1, facts.preprocess.mean.length, ...size]);
    if (facts.task === "detect") given.sizes = new ort.Tensor("int64", BigInt64Array.from(seen, BigInt), [1, 2]);
    return this.session.run(given);
  }
  async predict(rgba, height, width, least, most) {
    const { facts } = this, input = prepare(rgba, height, width, facts.preprocess), [low, high] = facts.sides;
    const detects = facts.task === "detect";
    const whole = detects ? padded(input, facts.preprocess.mean.length, low, facts.multiple) : input;
    if (Math.min(...whole.size) < facts.smallest || Math.max(...whole.size) > high) {
      throw new Error(`The model takes sides of ${facts.smallest} to ${high} pixels; this picture has ${whole.size.join(" x ")} (height x width) once resized.`);
    }
    const outputs = await this.run(whole.data, whole.size, input.size);
    if (facts.task === "classify") return { height, width, top: classes(outputs.logits.data, facts, most) };
    if (detects) {
      const data = Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
      return { height, width, objects: objects(data, facts, input.size, [height, width], least) };
    }
    const { data, dims } = outputs.logits, scale = Math.min(1, SHOWN / Math.max(height, width));
    const size = [height, width].map((side) => Math.max(1, Math.round(side * scale)));
    return { height, width, classes: regions(labelMap(data, dims[1], dims.slice(2), input.size, size), size, facts) };
  }
}

if (typeof WorkerGlobalScope !== "undefined" && self instanceof WorkerGlobalScope) {
  const model = Model.open();
  model.then(({ facts }) => postMessage({ facts }), (error) => postMessage({ why: error.message }));
  self.onmessage = async ({ data }) => {
    const { number, pixels, width, height, least, most } = data;
    try {
      postMessage({ number, prediction: await (await model).predict(new Uint8ClampedArray(pixels), height, width, least, most) });
    } catch (error) {
      postMessage({ number, why: error.message });
    }
  };
}
