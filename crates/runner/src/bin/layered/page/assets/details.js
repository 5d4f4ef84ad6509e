// The details of one layer, in a dialog. Every button with a layer opens it.
const showDetails = (() => {
  // The most layers that one list shows.
  const MOST = 200;
  const content = element("div");
  const close = button("Close", undefined, () => dialog.close());
  const dialog = element("dialog", { "aria-labelledby": "details-title" }, content, close);
  document.body.append(dialog);

  const list = indexes => {
    const items = indexes.slice(0, MOST).map(index => element("li", {}, layerButton(index)));
    if (indexes.length > MOST) items.push(element("li", {}, `and ${count(indexes.length - MOST)} more`));
    return element("ul", { class: "layers" }, ...items);
  };
  const text = value => element("bdi", {}, value);
  const phaseTable = run => {
    const all = (run.end - run.start) * 1000;
    return element("ul", { class: "phases" }, ...run.phases.map(([phase, micros]) => {
      const bar = element("span", { class: `swatch ${phaseClass(phase)}` });
      bar.style.width = `${Math.max(1, Math.min(100, 100 * micros / all))}%`;
      return element("li", {}, text(`${phases[phase]}: ${duration(micros / 1000)}`), element("span", { class: "track" }, bar));
    }));
  };

  const show = index => {
    const layer = layers[index];
    const rows = [["Status", element("span", { class: hasFailed(layer) || isUnreadable(layer) ? "failed" : "ok" }, mark(layer), text(status(layer)))]];
    if (layer.error !== undefined) rows.push(["Error", text(layer.error)]);
    if (layer.command !== undefined) rows.push(["Command", element("code", {}, text(layer.command))]);
    if (layer.made !== undefined) rows.push(["Made (UTC)", stamp(layer.made)]);
    rows.push(["Last used (UTC)", lastUse(layer)]);
    if (layer.bytes !== undefined) rows.push(["Size", bytes(layer.bytes)]);
    if (layer.base !== undefined) rows.push(["Base", text(bases[layer.base])]);
    if (layer.host !== undefined) rows.push(["Host", text(hosts[layer.host])]);
    if (layer.run) rows.push([`Took ${duration(took(layer))}`, phaseTable(layer.run)]);
    if (!isUnreadable(layer)) {
      const missing = layer.missing ? `, ${count(layer.missing)} of them not in this store` : "";
      rows.push(["Parents", `${count(layer.below)}${missing}`]);
      if (layer.parents.length) rows.push(["Direct parents", list(layer.parents)]);
    }
    if (above[index].length) rows.push([`Direct parent of ${plural(above[index].length, "layer")}`, list(above[index])]);
    const terms = rows.flatMap(([term, value]) => [element("dt", {}, term), element("dd", {}, value)]);
    content.replaceChildren(element("h2", { id: "details-title" }, text(layer.name)), element("dl", {}, ...terms));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    close.focus({ preventScroll: true });
  };
  document.addEventListener("click", event => {
    const opener = event.target.closest("button[data-layer]");
    if (opener) show(Number(opener.dataset.layer));
  });
  return show;
})();
