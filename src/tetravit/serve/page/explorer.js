// Predictions come from the server that this page came from.
async function post(query) {
  let response;
  try {
    response = await fetch(`/v1/predict?${query}`, { method: "POST", body: state.file });
  } catch {
    throw new Error("The server does not respond; is it still running?");
  }
  if (response.ok) return response;
  let text = `The server responded with status ${response.status}.`;
  try { text = (await response.json()).error || text; } catch { /* the status is all there is */ }
  throw new Error(text);
}
const source = {
  async begin() {
    let reply;
    try {
      reply = await (await fetch("/v1/models")).json();
    } catch {
      throw new Error("The models cannot be loaded; is the server still running?");
    }
    const { models, limits } = reply, mib = (limits.body_bytes / 2 ** 20).toFixed(0);
    const note = `Up to ${mib} MiB and ${(limits.pixels / 1e6).toFixed(0)} million pixels. Pictures go to ${location.host} and nowhere else.`;
    return { models, limits, note };
  },
  refuses(file) {
    const limit = state.limits.body_bytes;
    if (file.size <= limit) return "";
    return `${file.name || "The picture"} has ${(file.size / 2 ** 20).toFixed(1)} MiB; the server takes up to ${(limit / 2 ** 20).toFixed(0)} (--max-body-mib).`;
  },
  async predict(model, least, most) {
    const query = new URLSearchParams({ model: model.name });
    if ("threshold" in model.options) query.set("threshold", least);
    if ("topk" in model.options) query.set("topk", most);
    return (await post(query)).json();
  },
  async explain(model, method) {
    return (await post(new URLSearchParams({ model: model.name, explain: method }))).blob();
  },
};
