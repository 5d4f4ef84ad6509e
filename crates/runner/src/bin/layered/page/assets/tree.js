// The tree: each base, and above it the layers that stand on it. A layer that stands on several others is below
// each of them, but is open in one place only.
{
  const CHUNK = 100;
  const section = document.getElementById("tree");
  const said = element("output", { class: "note", "aria-live": "polite" });
  // The item in which each open layer is.
  const opened = new Map();

  // Adds the next items to a list, and a button for those after them.
  const fill = (list, indexes, from) => {
    list.append(...indexes.slice(from, from + CHUNK).map(itemOf));
    const rest = indexes.length - from - CHUNK;
    if (rest <= 0) return;
    const more = element("li", {}, button(`Show ${Math.min(CHUNK, rest)} more of ${count(rest)}`, undefined, () => {
      more.remove();
      fill(list, indexes, from + CHUNK);
      list.children[from + CHUNK].querySelector("button").focus();
    }));
    list.append(more);
  };
  const close = item => {
    for (const inner of [item, ...item.querySelectorAll("li")]) {
      if (opened.get(inner.layer) === inner) opened.delete(inner.layer);
    }
    item.querySelector("ul").remove();
    item.firstChild.setAttribute("aria-expanded", "false");
  };
  const open = (item, indexes) => {
    const list = element("ul");
    item.append(list);
    item.firstChild.setAttribute("aria-expanded", "true");
    fill(list, indexes, 0);
  };
  const toggle = (item, indexes) => {
    said.textContent = "";
    if (item.firstChild.getAttribute("aria-expanded") === "true") return close(item);
    const other = opened.get(item.layer);
    if (other) {
      other.firstChild.focus();
      other.scrollIntoView({ block: "center" });
      said.textContent = `${layers[item.layer].name} is open here already.`;
      return;
    }
    if (item.layer !== undefined) opened.set(item.layer, item);
    open(item, indexes);
  };
  const twist = (name, indexes) => {
    const item = element("li");
    const made = button("", `Layers on ${name}`, () => toggle(item, indexes));
    made.className = "twist";
    made.setAttribute("aria-expanded", "false");
    made.addEventListener("keydown", event => {
      const isOpen = made.getAttribute("aria-expanded") === "true";
      if (event.key === "ArrowRight" && !isOpen || event.key === "ArrowLeft" && isOpen) toggle(item, indexes);
    });
    item.append(made);
    return item;
  };
  const itemOf = index => {
    const layer = layers[index];
    const item = above[index].length ? twist(layer.name, above[index]) : element("li", { class: "leaf" });
    item.layer = index;
    item.append(layerButton(index));
    const notes = [];
    if (above[index].length) notes.push(count(above[index].length));
    if (layer.parents.length > 1) notes.push(`on ${plural(layer.parents.length, "layer")}`);
    if (hasFailed(layer) || isUnreadable(layer)) item.append(element("span", { class: "failed" }, mark(layer), element("bdi", {}, status(layer))));
    if (notes.length) item.append(element("small", {}, notes.join(", ")));
    return item;
  };

  // The layers at the bottom, by base. A ring of layers that name each other has no bottom: one of them counts.
  const reached = new Set();
  const reach = start => {
    for (const pending = [start]; pending.length;) {
      const index = pending.pop();
      if (reached.has(index)) continue;
      reached.add(index);
      pending.push(...above[index]);
    }
  };
  const roots = [];
  const root = index => {
    roots.push(index);
    reach(index);
  };
  const readable = layers.flatMap((layer, index) => isUnreadable(layer) ? [] : [index]);
  readable.filter(index => layers[index].parents.length === 0).forEach(root);
  readable.forEach(index => reached.has(index) || root(index));

  const list = element("ul", { class: "tree" });
  const bottom = byBase(roots);
  for (const [base, indexes] of bottom) {
    const item = twist(bases[base], indexes);
    item.append(element("strong", {}, "base ", element("bdi", {}, bases[base])), element("small", {}, count(indexes.length)));
    list.append(item);
    if (bottom.size === 1) open(item, indexes);
  }
  section.append(element("p", { class: "note" }, "Each layer is listed under all of its direct parents. It can be open in only one of these places at a time."), list, said);
}
