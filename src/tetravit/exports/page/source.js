// Predictions come from model.js, which runs the model of this folder in a worker of the browser.
const SIMD = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
const PIXELS_READ = 16777216; // the largest canvas of some browsers; larger pictures are first drawn smaller
const waiting = new Map();
let worker;

async function pixelsOf(file) {
  let bitmap;
  const plain = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  try {
    bitmap = await createImageBitmap(file, plain).catch(() => createImageBitmap(file));
  } catch {
    throw new Error(`This browser cannot read ${file.name || "the picture"} as an image.`);
  }
  const scale = Math.min(1, Math.sqrt(PIXELS_READ / (bitmap.width * bitmap.height)));
  const width = Math.max(1, Math.floor(bitmap.width * scale)), height = Math.max(1, Math.floor(bitmap.height * scale));
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "#ffffff"; // under transparent pixels
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(bitmap, 0, 0, width, height);
  return { pixels: pen.getImageData(0, 0, width, height).data.buffer, width, height, of: [bitmap.width, bitmap.height] };
}
const source = {
  async begin() {
    if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) {
      throw new Error("This browser has no WebAssembly SIMD, which the model needs; current versions of Chrome, Edge, Firefox and Safari have it.");
    }
    if (location.protocol === "file:") {
      throw new Error("Browsers load no model from a file: serve this folder, for example with python -m http.server, and open its address.");
    }
    worker = new Worker("model.js", { type: "module" });
    const facts = await new Promise((resolve, reject) => {
      worker.onerror = () => reject(new Error("The model cannot be loaded: model.js does not run in this browser."));
      worker.onmessage = ({ data }) => {
        if (data.facts) return resolve(data.facts);
        if (data.number === undefined) return reject(new Error(`The model cannot be loaded: ${data.why}`));
        const { resolve: done, reject: failed } = waiting.get(data.number);
        waiting.delete(data.number);
        return data.why === undefined ? done(data.prediction) : failed(new Error(data.why));
      };
    });
    const note = "The model runs in this browser: pictures stay on this device.";
    return { models: [{ ...facts, explain: [] }], limits: {}, note };
  },
  refuses() { return ""; },
  async predict(model, least, most) {
    const { pixels, width, height, of } = await pixelsOf(state.file), number = waiting.size ? Math.max(...waiting.keys()) + 1 : 0;
    const prediction = await new Promise((resolve, reject) => {
      waiting.set(number, { resolve, reject });
      worker.postMessage({ number, pixels, width, height, least, most }, [pixels]);
    });
    const scale = of[0] / width; // of pictures that were drawn smaller
    for (const row of prediction.objects || []) row.bbox = row.bbox.map((side) => side * scale);
    return { model: model.name, task: model.task, ...prediction, width: of[0], height: of[1] };
  },
};
