// Renders /openapi.json: the paths by tag, their parameters, bodies and replies, and the schemas that they name.
"use strict";

function make(tag, ...children) {
  const element = document.createElement(tag);
  element.append(...children.filter((child) => child != null));
  return element;
}

// Text with `code` in it.
function prose(text) {
  return make("span", ...(text || "").split("`").map((part, i) => (i % 2 ? make("code", part) : part)));
}

function table(head, rows) {
  const line = (cell, cells) => make("tr", ...cells.map((content) => make(cell, typeof content === "string" ? prose(content) : (content ?? ""))));
  return rows.length ? make("table", line("th", head), ...rows.map((row) => line("td", row))) : null;
}

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    const link = make("a", name);
    link.href = `#${name}`;
    return link;
  }
  const either = schema.oneOf || schema.anyOf;
  if (either) {
    const parts = either.flatMap((one) => [kind(one), " or "]).slice(0, -1);
    return make("span", ...parts);
  }
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return make("span", "array of ", kind(schema.items));
  return [schema.type].flat().join(" or ") || "any";
}

function bodies(content) {
  return make("span", ...Object.entries(content || {}).flatMap(([media, { schema }]) => [make("code", media), " ", kind(schema), " "]));
}

function operation(method, path, op) {
  const summary = make("summary", make("b", method.toUpperCase()), make("code", path), make("span", op.summary));
  const parameters = (op.parameters || []).map((p) => [make("code", p.name), p.in, kind(p.schema), p.description]);
  const responses = Object.entries(op.responses).map(([status, r]) => [status, r.description, bodies(r.content)]);
  return make(
    "details",
    summary,
    op.description && make("p", prose(op.description)),
    make("p", op.security.length ? "Needs a key, where the server has any." : "Open: needs no key."),
    table(["parameter", "in", "type", ""], parameters),
    op.requestBody && make("p", "Body: ", bodies(op.requestBody.content)),
    table(["status", "", "body"], responses),
  );
}

function schema(name, value) {
  const required = new Set(value.required || []);
  const rows = Object.entries(value.properties || {}).map(([field, property]) => [
    make("code", required.has(field) ? `${field} *` : field),
    kind(property),
    property.description,
  ]);
  const box = make("details", make("summary", make("code", name), prose(value.description)), table(["field", "type", ""], rows));
  box.id = name;
  return box;
}

async function show() {
  const main = document.getElementById("main");
  const spec = await (await fetch("/openapi.json")).json();
  const tags = new Map(spec.tags.map((tag) => [tag.name, [make("p", prose(tag.description))]]));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const [method, op] of Object.entries(methods)) {
      const tag = op.tags[0];
      if (!tags.has(tag)) tags.set(tag, []);
      tags.get(tag).push(operation(method, path, op));
    }
  }
  const example = `curl ${location.origin}/v1/images/generations -H 'content-type: application/json' -d '{"prompt": "a red circle on a blue background"}'`;
  main.replaceChildren(
    make("p", spec.info.description),
    make("pre", example),
    ...[...tags].flatMap(([tag, operations]) => [make("h2", tag), ...operations]),
    make("h2", "Schemas"),
    ...Object.entries(spec.components.schemas).map(([name, value]) => schema(name, value)),
  );
  const open = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target?.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", open);
  open();
}

show().catch((error) => (document.getElementById("main").textContent = `The document cannot be read: ${error.message}`));
