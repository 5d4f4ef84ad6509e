"use strict";
// Without this script, the page shows all layers in the order of the directory.
const table = document.querySelector("table");
const layers = [...table.tBodies];
const value = (layer, column) => {
  const cell = layer.rows[0].cells[column];
  return cell === undefined ? "" : cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
};
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
const sort = (heading, direction) => {
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", direction);
  const sign = direction === "ascending" ? 1 : -1;
  layers.sort((a, b) => sign * compare(value(a, heading.cellIndex), value(b, heading.cellIndex)));
  table.append(...layers);
};
for (const heading of table.tHead.rows[0].cells) {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  button.addEventListener("click", () =>
    sort(heading, heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending"));
  heading.append(button);
}
sort(table.tHead.rows[0].cells[0], "ascending");
const filter = document.querySelector("label");
filter.hidden = false;
filter.addEventListener("input", event => {
  const text = event.target.value.toLowerCase();
  for (const layer of layers) layer.hidden = !layer.rows[0].textContent.toLowerCase().includes(text);
});
