// Info marks and downloads: what stands beside widgets and charts without taking room from them.
// The definitions are in the page as JSON under "es-tips", by the id of the element they are about.
(() => {
  const tips = JSON.parse(document.getElementById("es-tips").textContent);
  const box = document.createElement("div");
  Object.assign(box, { id: "es-tip", hidden: true });
  box.setAttribute("role", "tooltip");
  let shown = null;

  function show(mark) {
    box.textContent = mark.dataset.tip;
    box.hidden = false;
    shown = mark;
    mark.setAttribute("aria-describedby", "es-tip");
    const at = mark.getBoundingClientRect();
    const width = Math.min(320, window.innerWidth - 16);
    box.style.width = `${width}px`;
    box.style.left = `${Math.max(8, Math.min(at.right - width, window.innerWidth - width - 8))}px`;
    const below = at.bottom + 6;
    const above = at.top - 6 - box.offsetHeight;
    box.style.top = `${below + box.offsetHeight > window.innerHeight && above > 0 ? above : below}px`;
  }

  function hide() {
    shown?.removeAttribute("aria-describedby");
    shown = null;
    box.hidden = true;
  }

  const markOf = (event) => event.target instanceof Element && event.target.closest(".es-mark-info");
  for (const [on, off] of [["mouseover", "mouseout"], ["focusin", "focusout"]]) {
    document.addEventListener(on, (event) => markOf(event) && show(markOf(event)));
    document.addEventListener(off, (event) => markOf(event) && hide());
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  document.addEventListener("scroll", hide, true);

  function button(kind, label, text) {
    const made = document.createElement("button");
    Object.assign(made, { type: "button", className: `es-corner ${kind}`, textContent: text });
    made.setAttribute("aria-label", label);
    return made;
  }

  function infoMark(name, text) {
    const made = button("es-mark-info", `About ${name}: ${text}`, "i");
    made.dataset.tip = text;
    made.addEventListener("click", (event) => {
      event.preventDefault();
      event.stopPropagation();
      show(made);
    });
    return made;
  }

  // What a chart draws, one row per point. Values that are arrays of arrays, as a heatmap's, get a column and a row.
  function table(chart) {
    const rows = [["trace", "x", "y", "value"]];
    const list = (values) => (values ? Array.from(values) : []);
    for (const trace of chart._fullData ?? []) {
      const [xs, ys, name] = [list(trace.x), list(trace.y), trace.name ?? ""];
      if (trace.z) {
        list(trace.z).forEach((row, i) => list(row).forEach((z, j) => rows.push([name, xs[j] ?? j, ys[i] ?? i, z])));
      } else {
        const count = Math.max(xs.length, ys.length);
        for (let i = 0; i < count; i++) rows.push([name, xs[i] ?? i, ys[i] ?? i, ""]);
      }
    }
    const cell = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
    return rows.map((row) => row.map(cell).join(",")).join("\r\n");
  }

  function save(text, name, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function image(chart, format, name) {
    const size = { width: chart.clientWidth, height: chart.clientHeight, scale: format === "png" ? 3 : 1 };
    return window.Plotly.downloadImage(chart, { format, filename: name, ...size });
  }

  function downloads(place) {
    const name = `editscope-${place.id.replace(/^plot-/, "")}`;
    const menu = document.createElement("span");
    menu.className = "es-downloads";
    for (const format of ["PNG", "SVG", "CSV"]) {
      const made = button("es-download", `Download this chart as ${format}`, format);
      made.addEventListener("click", () => {
        const chart = place.querySelector(".js-plotly-plot");
        if (!chart) return;
        if (format === "CSV") save(table(chart), `${name}.csv`, "text/csv");
        else image(chart, format.toLowerCase(), name);
      });
      menu.append(made);
    }
    return menu;
  }

  function decorate() {
    if (!box.isConnected) document.body.append(box);
    for (const [id, [name, text]] of Object.entries(tips)) {
      const place = document.getElementById(id);
      if (!place || place.querySelector(":scope > .es-corners")) continue;
      const corners = document.createElement("span");
      corners.className = "es-corners";
      if (place.querySelector(".js-plotly-plot") || /^plot-/.test(id)) corners.append(downloads(place));
      corners.append(infoMark(name, text));
      place.append(corners);
      place.classList.add("es-marked");
    }
  }

  // Gradio draws parts of the page late and anew; looking once per frame is enough.
  let waiting = false;
  new MutationObserver(() => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      decorate();
    });
  }).observe(document.documentElement, { childList: true, subtree: true });
})();
