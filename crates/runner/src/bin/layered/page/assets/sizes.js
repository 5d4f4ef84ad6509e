// The map of sizes: a rectangle for each layer, whose area is the layer's size and whose colour is its last use.
{
  const HEADING = 18;
  const DAY = 86_400;
  const ages = [["in the last day", DAY], ["in the last week", 7 * DAY], ["in the last month", 30 * DAY], ["longer ago", Infinity], ["never", undefined]];
  const ageOf = layer => {
    if (layer.held) return 0;
    if (layer.used === undefined) return 4;
    return ages.findIndex(([, most]) => store.written - layer.used <= most);
  };

  const section = document.getElementById("sizes");
  const sized = layers.flatMap((layer, index) => layer.bytes > 0 ? [index] : []);
  const groups = byBase(sized);
  const root = d3.hierarchy({ children: [...groups].map(([base, indexes]) => ({ base, children: indexes.map(index => ({ index })) })) })
    .sum(({ index }) => index === undefined ? 0 : layers[index].bytes)
    .sort((a, b) => b.value - a.value);
  // The largest first.
  const cells = sized.length ? root.leaves().sort((a, b) => b.value - a.value) : [];
  const map = d3.treemap().paddingTop(node => node.depth === 1 && groups.size > 1 ? HEADING : 0);

  const write = (context, text, node, height) => {
    context.save();
    context.beginPath();
    context.rect(node.x0 + 2, node.y0, node.x1 - node.x0 - 4, height);
    context.clip();
    context.fillText(text, node.x0 + 4, node.y0 + height / 2);
    context.restore();
  };
  const draw = (context, width, height) => {
    map.size([width, height])(root);
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    const fills = ages.map((_, age) => colour(`--age-${age}`));
    const inks = ages.map((_, age) => colour(`--age-ink-${age}`));
    for (const node of cells) {
      const layer = layers[node.data.index];
      const age = ageOf(layer);
      const [wide, high] = [node.x1 - node.x0, node.y1 - node.y0];
      // Rectangles with room for it have a gap between them.
      const gap = Math.min(wide, high) > 4 ? 1 : Math.min(wide, high) / 5;
      context.fillStyle = fills[age];
      context.fillRect(node.x0, node.y0, wide - gap, high - gap);
      if (wide < 48 || high < 16) continue;
      context.fillStyle = inks[age];
      write(context, layer.name, node, Math.min(high, 20));
    }
    if (groups.size < 2) return;
    context.fillStyle = colour("--ink");
    for (const node of root.children) write(context, `${bases[node.data.base]}: ${bytes(node.value)}`, node, HEADING);
  };
  const find = (x, y) => cells.find(node => x >= node.x0 && x < node.x1 && y >= node.y0 && y < node.y1);
  const describe = node => {
    const layer = layers[node.data.index];
    return { layer: node.data.index, lines: [layer.name, bytes(layer.bytes), `last used: ${lastUse(layer)}`] };
  };
  const move = (node, key) => {
    const at = cells.indexOf(node);
    const next = { Home: 0, End: cells.length - 1, ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1 }[key];
    return next === undefined ? undefined : cells[Math.max(0, Math.min(next, cells.length - 1))];
  };
  const box = node => ({ x: node.x0, y: node.y0, width: node.x1 - node.x0, height: node.y1 - node.y0 });

  const notes = [];
  const unsized = layers.filter(layer => layer.bytes === undefined && !isUnreadable(layer)).length;
  if (unsized) notes.push(`${plural(unsized, "layer")} ${unsized === 1 ? "has" : "have"} no recorded size; layered page --du measures.`);
  if (cells.length) {
    const host = element("div", { class: "map" });
    const view = chart(host, draw, { find, describe, move, box });
    view.canvas.setAttribute("aria-label", `Map of the sizes of ${plural(cells.length, "layer")}`);
    const legend = element("ul", { class: "legend" }, element("li", {}, "Last used:"),
      ...ages.map(([name], age) => element("li", {}, element("span", { class: `swatch age-${age}` }), name)));
    section.append(legend, host, view.readout);
    notes.push("Arrow keys go through the layers from the largest on, Enter shows one.");
  }
  section.append(element("p", { class: "note" }, notes.join(" ")));
}
