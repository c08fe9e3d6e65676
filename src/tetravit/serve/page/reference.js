// The routes of /openapi.json as a page.
const at = (id) => document.getElementById(id);
function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text) element.textContent = text;
  if (className) element.className = className;
  return element;
}
function table(rows) {
  const body = make("table", "", "plain");
  for (const [name, text] of rows) {
    const row = make("tr");
    row.append(make("th", name), make("td", text));
    body.append(row);
  }
  return body;
}
function values(schema) {
  if (!schema) return "";
  if (schema.enum) return schema.enum.join(", ");
  const range = schema.maximum !== undefined ? ` ${schema.minimum} to ${schema.maximum}` : schema.minimum !== undefined ? ` from ${schema.minimum}` : "";
  return `${schema.type || ""}${range}`;
}
function route(path, verb, shared, operation) {
  const card = make("section", "", "card");
  const head = make("h2", "", "route");
  head.append(make("span", verb.toUpperCase(), `verb ${verb}`), make("code", path));
  card.append(head, make("p", operation.summary, "sub"));
  const parameters = [...(shared || []), ...(operation.parameters || [])];
  if (parameters.length) {
    card.append(make("h3", "Parameters"));
    card.append(table(parameters.map((p) => [p.name, [p.description, `(${values(p.schema)})`].filter(Boolean).join(" ")])));
  }
  if (operation.requestBody) {
    card.append(make("h3", "Body"), make("p", operation.requestBody.description || Object.keys(operation.requestBody.content).join(", ")));
  }
  card.append(make("h3", "Responses"), table(Object.entries(operation.responses).map(([code, r]) => [code, r.description])));
  return card;
}
async function show() {
  try {
    const description = await (await fetch("/openapi.json")).json();
    at("title").textContent = `${description.info.title} ${description.info.version}`;
    at("about").textContent = description.info.description;
    const cards = [];
    for (const [path, item] of Object.entries(description.paths)) {
      for (const verb of ["get", "post"]) if (item[verb]) cards.push(route(path, verb, item.parameters, item[verb]));
    }
    at("routes").replaceChildren(...cards);
  } catch (error) {
    at("routes").replaceChildren(make("p", `The routes cannot be loaded: ${error.message}`));
  }
}
show();
