// What the timeline and the map of sizes share: a canvas that follows its size and the colour
// scheme, with one selected item, a tip at the pointer, and a line of text for readers of the screen.
const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const redraws = [];
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach(redraw => redraw()));

// Makes a chart. `options` has `find(x, y)`, which returns the item at a point or undefined,
// `describe(item)`, which returns its layer and lines of text, `move(item, key)`, which returns the item that
// an arrow key leads to, and `box(item)`, its rectangle. Coordinates are those of the canvas, in pixels of CSS.
const chart = (host, draw, options) => {
  const canvas = element("canvas", { tabindex: 0, role: "application" });
  const tip = element("div", { class: "tip", "aria-hidden": "true", hidden: "" });
  const readout = element("output", { class: "readout", "aria-live": "polite" });
  let selected, pending;
  const redraw = () => {
    pending ??= requestAnimationFrame(() => {
      pending = undefined;
      const { clientWidth: width, clientHeight: height } = canvas;
      const scale = window.devicePixelRatio || 1;
      [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      draw(context, width, height);
      if (selected === undefined) return;
      const box = options.box(selected);
      context.strokeStyle = colour("--ink");
      context.lineWidth = 2;
      context.strokeRect(box.x - 1, box.y - 1, box.width + 2, box.height + 2);
    });
  };
  const select = (item, x, y) => {
    if (item !== selected) {
      selected = item;
      const lines = item === undefined ? [] : options.describe(item).lines;
      tip.replaceChildren(...lines.map(line => element("div", {}, element("bdi", {}, line))));
      readout.textContent = lines.join(", ");
      redraw();
    }
    tip.hidden = item === undefined;
    if (item === undefined) return;
    const around = canvas.getBoundingClientRect();
    const [right, bottom] = [document.documentElement.clientWidth - tip.offsetWidth - 8, innerHeight - tip.offsetHeight - 8];
    tip.style.left = `${Math.max(8, Math.min(around.left + x + 12, right))}px`;
    tip.style.top = `${Math.max(8, Math.min(around.top + y + 16, bottom))}px`;
  };
  canvas.addEventListener("pointermove", event => select(options.find(event.offsetX, event.offsetY), event.offsetX, event.offsetY));
  canvas.addEventListener("pointerleave", () => select(undefined));
  canvas.addEventListener("blur", () => select(undefined));
  canvas.addEventListener("click", event => {
    const item = options.find(event.offsetX, event.offsetY);
    if (item !== undefined) showDetails(options.describe(item).layer);
  });
  canvas.addEventListener("keydown", event => {
    if (event.key === "Enter" && selected !== undefined) {
      // The key would also press the button that gets the focus.
      event.preventDefault();
      return showDetails(options.describe(selected).layer);
    }
    if (event.key === "Escape") return select(undefined);
    const next = event.ctrlKey || event.metaKey || event.altKey ? undefined : options.move(selected, event.key);
    if (next === undefined) return;
    event.preventDefault();
    const box = options.box(next);
    select(next, box.x, box.y + box.height);
  });
  new ResizeObserver(redraw).observe(canvas);
  redraws.push(redraw);
  host.append(canvas);
  document.body.append(tip);
  return { canvas, readout, redraw, clear: () => select(undefined) };
};
