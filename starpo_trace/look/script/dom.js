// Elements, made of names of ours and texts of the data. Nothing here parses markup.

const SVG = "http://www.w3.org/2000/svg";

function element(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function drawing(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function number(value) {
  if (value === null || value === undefined) return "—";
  if (typeof value !== "number") return String(value); // infinite, or beyond what a number holds
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3));
}

function seconds(value) {
  if (value === null) return null;
  return value < 1 ? `${Math.round(value * 1000)} ms` : value < 120 ? `${number(value)} s` : `${number(value / 60)} min`;
}

function linkTo(id, step) {
  return `#t=${encodeURIComponent(id)}${step === undefined ? "" : `/${step + 1}`}`;
}
