// The timeline: a bar for each run, in lanes. Each lane has runs of one host. The browser scrolls a large empty
// element, and the canvas that covers the visible part of it is drawn again.
const phaseClass = (() => {
  const known = ["runc_run", "merge", "overlay_mount", "overlay_umount", "prep_upper", "config", "plan", "touch", "cleanup"];
  const COLOURS = 12;
  let next = known.length;
  const classes = phases.map(name => {
    const slot = known.indexOf(name);
    return `phase-${slot >= 0 ? slot : known.length + (next++ - known.length) % (COLOURS - known.length)}`;
  });
  return phase => classes[phase];
})();

{
  const AXIS = 24;
  const WIDEST = 8_000_000;
  const STEPS = [0.001, 0.01, 0.1, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800];
  const section = document.getElementById("timeline");
  const untimed = layers.filter(layer => !layer.run && !isUnreadable(layer)).length;

  let batch = batches.length - 1;
  let zoom = 1;
  let bars = [];
  let lanes = [];
  const span = () => Math.max(1, batches[batch].end - batches[batch].start);
  const extent = element("div", { class: "extent" });
  const scroller = element("div", { class: "scroller" }, extent);
  const width = () => scroller.clientWidth;
  const laneHeight = () => Math.max(6, Math.min(22, Math.floor((420 - AXIS) / batches[batch].lanes)));
  const x = time => (time - batches[batch].start) / span() * (width() * zoom - 8) + 4 - scroller.scrollLeft;
  const box = index => {
    const { run } = layers[index];
    const left = x(run.start);
    return { x: left, y: AXIS + run.lane * laneHeight() - scroller.scrollTop, width: Math.max(2, x(run.end) - left), height: laneHeight() - 1 };
  };

  const label = (time, step) => {
    const text = new Date(time).toISOString();
    if (step >= 86400) return text.slice(0, 10);
    return text.slice(11, step >= 60 ? 16 : step >= 1 ? 19 : 23);
  };
  const drawAxis = (context, wide, high) => {
    const seconds = span() / 1000 / (width() * zoom) * 90;
    const step = STEPS.find(step => step >= seconds) ?? Math.ceil(seconds / 604800) * 604800;
    const left = batches[batch].start + (scroller.scrollLeft - 4) / (width() * zoom - 8) * span();
    context.font = "12px system-ui, sans-serif";
    context.textBaseline = "middle";
    for (let time = Math.ceil(left / step / 1000) * step * 1000; x(time) < wide; time += step * 1000) {
      context.fillStyle = colour("--line");
      context.fillRect(Math.round(x(time)), 0, 1, high);
      context.fillStyle = colour("--soft");
      context.fillText(label(time, step), x(time) + 4, AXIS / 2);
    }
  };
  const drawBar = (context, index, colours) => {
    const { run } = layers[index];
    const { x: left, y: top, width: wide, height: high } = box(index);
    if (left > width() || left + wide < 0 || top > scroller.clientHeight || top + high < AXIS) return;
    context.fillStyle = colours.rest;
    context.fillRect(left, top, wide, high);
    const sum = run.phases.reduce((sum, [, micros]) => sum + micros, 0);
    const scale = wide / Math.max(sum, (run.end - run.start) * 1000, 1);
    let at = left;
    for (const [phase, micros] of run.phases) {
      context.fillStyle = colours.phases[phase];
      context.fillRect(at, top, micros * scale, high);
      at += micros * scale;
    }
    // Runs that follow each other in a lane are told apart.
    context.fillStyle = colours.paper;
    if (wide > 3) context.fillRect(left + wide - 1, top, 1, high);
    if (!hasFailed(layers[index])) return;
    // A failed run has a stripe below and a cross.
    const stripe = Math.max(2, high / 3);
    context.fillStyle = colours.failed;
    context.fillRect(left, top + high - stripe, Math.max(3, wide), stripe);
    if (high < 9 || wide < 10) return;
    context.lineWidth = 4;
    for (const strokeStyle of [colours.paper, colours.failed]) {
      context.strokeStyle = strokeStyle;
      context.beginPath();
      context.moveTo(left + 2, top + 2); context.lineTo(left + 8, top + 8);
      context.moveTo(left + 8, top + 2); context.lineTo(left + 2, top + 8);
      context.stroke();
      context.lineWidth = 2;
    }
  };
  // Names the host above its first lane, if there are several hosts.
  const drawHosts = (context, wide, colours) => {
    if (hosts.length < 2) return;
    const hostOf = lane => layers[lanes[lane]?.[0]]?.host;
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "top";
    for (let lane = 0; lane < lanes.length; lane++) {
      const host = hostOf(lane);
      if (host === undefined || lane && host === hostOf(lane - 1)) continue;
      const top = AXIS + lane * laneHeight() - scroller.scrollTop;
      context.fillStyle = colour("--line");
      context.fillRect(0, top - 1, wide, 1);
      context.fillStyle = colours.paper;
      context.fillRect(0, top, context.measureText(hosts[host]).width + 8, 13);
      context.fillStyle = colour("--ink");
      context.fillText(hosts[host], 4, top + 1);
    }
  };
  const draw = (context, wide, high) => {
    drawAxis(context, wide, high);
    context.beginPath();
    context.rect(0, AXIS, wide, high);
    context.clip();
    const colours = {
      rest: colour("--phase-rest"), failed: colour("--failed"), paper: colour("--paper"),
      phases: phases.map((_, phase) => colour(`--${phaseClass(phase)}`)),
    };
    for (const index of bars) drawBar(context, index, colours);
    drawHosts(context, wide, colours);
  };

  const nearest = (lane, time) => {
    const middle = index => (layers[index].run.start + layers[index].run.end) / 2;
    return lanes[lane]?.reduce((best, index) => Math.abs(middle(index) - time) < Math.abs(middle(best) - time) ? index : best);
  };
  const find = (px, py) => py < AXIS ? undefined : lanes[Math.floor((py - AXIS + scroller.scrollTop) / laneHeight())]
    ?.find(index => px >= box(index).x - 2 && px <= box(index).x + box(index).width + 2);
  const describe = index => {
    const layer = layers[index];
    const parts = layer.run.phases.map(([phase, micros]) => `${phases[phase]} ${duration(micros / 1000)}`);
    const lines = [`${mark(layer)}${layer.name}: ${status(layer)}`, `took ${duration(took(layer))}, until ${stamp(layer.made)} UTC`];
    if (layer.host !== undefined) lines.push(`on ${hosts[layer.host]}`);
    return { layer: index, lines: [...lines, ...parts.slice(0, 12)] };
  };
  const show = index => {
    const place = box(index);
    if (place.x < 0 || place.x + Math.min(place.width, width()) > width()) scroller.scrollLeft += place.x - width() / 3;
    if (place.y < AXIS || place.y + place.height > scroller.clientHeight) scroller.scrollTop += place.y - scroller.clientHeight / 2;
    return index;
  };
  const move = (index, key) => {
    if (key === "+" || key === "=") return zoomTo(zoom * 2);
    if (key === "-") return zoomTo(zoom / 2);
    if (key === "0") return zoomTo(1);
    if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(key)) return undefined;
    if (key === "Home" || index === undefined) return show(bars[0]);
    if (key === "End") return show(bars.at(-1));
    const { run } = layers[index];
    const lane = lanes[run.lane];
    const next = {
      ArrowLeft: lane[lane.indexOf(index) - 1], ArrowRight: lane[lane.indexOf(index) + 1],
      ArrowUp: nearest(run.lane - 1, (run.start + run.end) / 2), ArrowDown: nearest(run.lane + 1, (run.start + run.end) / 2),
    }[key];
    return show(next ?? index);
  };

  const layout = () => {
    extent.style.width = zoom === 1 ? "100%" : `${width() * zoom}px`;
    extent.style.height = `${AXIS + batches[batch].lanes * laneHeight() + 2}px`;
    scroller.style.height = `${Math.min(440, AXIS + batches[batch].lanes * laneHeight() + 22)}px`;
    view.canvas.style.width = `${width()}px`;
    view.canvas.style.height = `${scroller.clientHeight}px`;
    view.redraw();
  };
  // Keeps the time at `anchor`, in pixels from the left, where it is.
  const zoomTo = (wanted, anchor = width() / 2) => {
    const former = zoom;
    const at = scroller.scrollLeft + anchor;
    zoom = Math.max(1, Math.min(wanted, WIDEST / width()));
    layout();
    scroller.scrollLeft = at * zoom / former - anchor;
    view.clear();
    view.redraw();
  };
  const open = () => {
    const { start, end, runs, lanes: number } = batches[batch];
    const isIn = ({ run }) => run && run.start >= start && run.end <= end;
    bars = layers.flatMap((layer, index) => isIn(layer) ? [index] : []).sort((a, b) => layers[a].run.start - layers[b].run.start);
    lanes = Array.from({ length: number }, () => []);
    for (const index of bars) lanes[layers[index].run.lane].push(index);
    view.canvas.setAttribute("aria-label", `Timeline of ${plural(runs, "run")} in ${plural(number, "lane")}`);
    zoom = 1;
    scroller.scrollLeft = scroller.scrollTop = 0;
    layout();
  };

  const notes = [];
  if (untimed) notes.push(`${plural(untimed, "layer")} without a recorded time ${untimed === 1 ? "is" : "are"} not shown.`);
  let view;
  if (batches.length === 0) {
    section.append(element("p", {}, "No layer records how long its run took."));
  } else {
    view = chart(extent, draw, { find, describe, move, box });
    const choice = element("select", {}, ...batches.map((batch, index) =>
      element("option", { value: index }, `${minute(batch.start / 1000)}, ${duration(batch.end - batch.start)}: ${plural(batch.runs, "run")}`)));
    choice.selectedIndex = batch;
    choice.addEventListener("change", () => {
      batch = choice.selectedIndex;
      view.clear();
      open();
    });
    const legend = element("ul", { class: "legend" },
      ...phases.map((name, phase) => element("li", {}, element("span", { class: `swatch ${phaseClass(phase)}` }), element("bdi", {}, name))),
      element("li", {}, element("span", { class: "swatch phase-rest" }), "not timed"),
      element("li", {}, element("span", { class: "swatch failure" }), "✗ failed"));
    const controls = element("p", { class: "controls" }, element("label", {}, "Batch (UTC) ", choice),
      button("−", "Zoom out", () => zoomTo(zoom / 2)), button("+", "Zoom in", () => zoomTo(zoom * 2)), button("Fit", "Fit the batch", () => zoomTo(1)));
    notes.push("Arrow keys select a run, Enter shows its layer, + and − zoom.");
    section.append(controls, legend, scroller, view.readout);
    scroller.addEventListener("scroll", view.redraw, { passive: true });
    scroller.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      zoomTo(zoom * 2 ** (-event.deltaY / 200), event.clientX - scroller.getBoundingClientRect().left);
    }, { passive: false });
    new ResizeObserver(layout).observe(scroller);
    open();
  }
  section.append(element("p", { class: "note" }, notes.join(" ")));
}
