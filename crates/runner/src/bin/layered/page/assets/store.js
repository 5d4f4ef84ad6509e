// The data of the page, and what all parts of it use. Texts of layers become text nodes, never markup.
const store = JSON.parse(document.getElementById("store").textContent);
const { layers, bases, hosts, phases, batches } = store;

const count = number => number.toLocaleString("en");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

// Makes an element. The content security policy forbids attributes that are styles or scripts.
const element = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

const button = (text, label, action) => {
  const made = element("button", { type: "button", ...(label && { "aria-label": label }) }, text);
  made.addEventListener("click", action);
  return made;
};

// A button that opens the details of a layer.
const layerButton = layer => element("button", { type: "button", class: "layer", "data-layer": layer },
  element("bdi", {}, layers[layer].name));

const stamp = seconds => {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? "out of range" : date.toISOString().slice(0, 19).replace("T", " ");
};

const minute = seconds => stamp(seconds).slice(0, 16);

const bytes = number => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit + 1 < units.length; unit++) number /= 1024;
  return `${unit ? number.toFixed(1) : number} ${units[unit]}`;
};

const duration = milliseconds => {
  if (milliseconds < 1) return `${Math.round(milliseconds * 1000)} µs`;
  if (milliseconds < 1000) return `${milliseconds.toFixed(1)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
};

const isUnreadable = layer => layer.exit === undefined;
const hasFailed = layer => layer.failed_by !== undefined || (layer.exit ?? 0) !== 0;
const status = layer => {
  if (isUnreadable(layer)) return "unreadable";
  if (layer.failed_by !== undefined) return `failed by ${layer.failed_by}`;
  return layer.exit === 0 ? "ok" : `exit ${layer.exit}`;
};
const mark = layer => isUnreadable(layer) || hasFailed(layer) ? "✗ " : "✓ ";
const lastUse = (layer, format = stamp) => layer.held ? "in use" : layer.used === undefined ? "never" : format(layer.used);
const took = layer => layer.run && layer.run.end - layer.run.start;

// The layers that stand directly on each layer.
const above = layers.map(() => []);
layers.forEach((layer, index) => layer.parents.forEach(parent => above[parent].push(index)));

// Groups indexes of layers by base, in their order.
const byBase = indexes => {
  const groups = new Map();
  for (const index of indexes) {
    const { base } = layers[index];
    if (!groups.has(base)) groups.set(base, []);
    groups.get(base).push(index);
  }
  return groups;
};
