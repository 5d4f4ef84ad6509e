// The index: a table that can be sorted and filtered. Only the rows near the visible ones are in the document.
{
  const OVERSCAN = 20;
  const cell = (text, kind = "") => element("td", kind && { class: kind }, element("bdi", {}, text));
  const columns = [
    // The layers are in the order of their names.
    { title: "Layer", key: (_, index) => index, cell: (layer, index) => element("th", { scope: "row" }, layerButton(index)) },
    {
      title: "Status",
      key: layer => isUnreadable(layer) ? "0" : hasFailed(layer) ? `1 ${status(layer)}` : "2",
      cell: layer => cell(mark(layer) + status(layer), isUnreadable(layer) || hasFailed(layer) ? "failed" : "ok"),
    },
    { title: "Size", number: true, key: layer => layer.bytes, cell: layer => cell(layer.bytes === undefined ? "–" : bytes(layer.bytes)) },
    { title: "Took", number: true, key: took, cell: layer => cell(layer.run ? duration(took(layer)) : "–") },
    { title: "Made (UTC)", number: true, key: layer => layer.made, cell: layer => cell(layer.made === undefined ? "–" : minute(layer.made)) },
    { title: "Last used (UTC)", number: true, key: layer => layer.held ? Infinity : layer.used, cell: layer => cell(lastUse(layer, minute)) },
    { title: "Parents", number: true, key: layer => layer.below, cell: layer => cell(isUnreadable(layer) ? "–" : count(layer.below)) },
    { title: "Command", key: layer => layer.command ?? layer.error ?? "", cell: layer => cell(layer.command ?? layer.error ?? "") },
  ];

  const input = element("input", { type: "search", autocomplete: "off", spellcheck: "false" });
  const kinds = [["all", () => true], ["ok", layer => !isUnreadable(layer) && !hasFailed(layer)], ["failed", hasFailed], ["unreadable", isUnreadable]];
  const choice = element("select", {}, ...kinds.map(([name]) => element("option", { value: name }, name)));
  const found = element("output", { "aria-live": "polite" });
  const heading = element("tr", { "aria-rowindex": 1 });
  const body = element("tbody");
  const table = element("table", { "aria-labelledby": "index-title" }, element("thead", {}, heading), body);
  const region = element("div", { class: "rows", tabindex: 0, role: "region", "aria-label": "Rows of the index" }, table);
  const [before, after] = [0, 0].map(() => element("tr", { "aria-hidden": "true", class: "space" }, element("td")));
  body.append(before, after);

  const searched = layers.map(layer => [layer.name, layer.command, layer.failed_by, layer.error, hosts[layer.host]].join("\n").toLowerCase());
  let order = layers.map((_, index) => index);
  let matching = order;
  // The rows in the document, by their position among the matching layers.
  const rows = new Map();

  const rowOf = position => {
    const index = matching[position];
    const row = element("tr", { "aria-rowindex": position + 2 }, ...columns.map(column => column.cell(layers[index], index)));
    row.className = position % 2 ? "odd" : "";
    return row;
  };
  const render = () => {
    const height = 2 * parseFloat(getComputedStyle(document.documentElement).fontSize);
    const first = Math.max(0, Math.floor(region.scrollTop / height) - OVERSCAN);
    const end = Math.min(matching.length, first + Math.ceil(region.clientHeight / height) + 2 * OVERSCAN);
    for (const [position, row] of rows) {
      if (position >= first && position < end) continue;
      row.remove();
      rows.delete(position);
    }
    // Rows that stay are not moved, so that one of them can keep the focus.
    let next = before.nextSibling;
    for (let position = first; position < end; position++) {
      const row = rows.get(position);
      if (row) {
        next = row.nextSibling;
      } else {
        rows.set(position, body.insertBefore(rowOf(position), next));
      }
    }
    before.firstChild.style.height = `${first * height}px`;
    after.firstChild.style.height = `${(matching.length - end) * height}px`;
    before.hidden = first === 0;
    after.hidden = end === matching.length;
  };
  const filter = () => {
    const text = input.value.toLowerCase();
    const [, isKind] = kinds[choice.selectedIndex];
    matching = order.filter(index => isKind(layers[index]) && searched[index].includes(text));
    for (const row of rows.values()) row.remove();
    rows.clear();
    found.textContent = matching.length === layers.length ? plural(layers.length, "layer") : `${count(matching.length)} of ${plural(layers.length, "layer")}`;
    table.setAttribute("aria-rowcount", matching.length + 1);
    region.scrollTop = 0;
    render();
  };
  const sort = (column, direction) => {
    for (const other of heading.cells) other.removeAttribute("aria-sort");
    heading.cells[columns.indexOf(column)].setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const keys = layers.map((layer, index) => column.key(layer, index) ?? -Infinity);
    const compare = (a, b) => keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0;
    order = layers.map((_, index) => index).sort((a, b) => sign * compare(a, b) || a - b);
    filter();
  };

  for (const column of columns) {
    const header = element("th", { scope: "col" });
    // Sizes and times start with the greatest.
    header.append(button(column.title, undefined, () => {
      const [usual, other] = column.number ? ["descending", "ascending"] : ["ascending", "descending"];
      sort(column, header.getAttribute("aria-sort") === usual ? other : usual);
    }));
    heading.append(header);
  }
  const controls = element("p", { class: "controls" }, element("label", {}, "Filter ", input), element("label", {}, "Status ", choice), found);
  document.getElementById("index").append(controls, region);
  input.addEventListener("input", filter);
  choice.addEventListener("change", filter);
  region.addEventListener("scroll", render, { passive: true });
  new ResizeObserver(render).observe(region);
  sort(columns[0], "ascending");
}
