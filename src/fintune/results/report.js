// Charts, sorting, tabs and the rows of report.html. Texts enter the page as text nodes only.
"use strict";

const GROUPS = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "4 2", "12 4", "1 2"];
const MAX_LINES = 6; // shown initially; the legend switches the others on
const PAGE = 20; // rows of text at a time

const color = (i) => `var(--c${i % 7})`;
const dash = (i) => DASHES[(i + Math.floor(i / 7)) % DASHES.length];
const percent = (x, digits = 1) => (100 * x).toFixed(digits) + " %";
const title = (cell) => cell.label + (cell.shown_seed === null ? "" : ` (seed ${cell.shown_seed})`);
const count = (x) => x.toLocaleString("en-US");
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));

function html(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== false && value !== null) element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// series differ in the shape of their marks too, not in colour alone
function mark(i, x, y, size = 4.5) {
  const style = { fill: color(i), stroke: "var(--card)", "stroke-width": 1 };
  const s = size;
  switch (i % 4) {
    case 0: return svg("circle", { cx: x, cy: y, r: s, ...style });
    case 1: return svg("rect", { x: x - s, y: y - s, width: 2 * s, height: 2 * s, ...style });
    case 2: return svg("path", { d: `M${x},${y - s * 1.3}L${x + s * 1.25},${y + s}L${x - s * 1.25},${y + s}Z`, ...style });
    default: return svg("path", { d: `M${x},${y - s * 1.4}L${x + s * 1.4},${y}L${x},${y + s * 1.4}L${x - s * 1.4},${y}Z`, ...style });
  }
}

function ticks(low, high, wanted) {
  const raw = (high - low) / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((x) => x * power).find((x) => x >= raw - 1e-12);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(+(k * step).toPrecision(10));
  return found;
}

const tip = document.getElementById("tip");
function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = clamp(event.clientX + 12, 4, innerWidth - box.width - 4) + "px";
  tip.style.top = (event.clientY - box.height - 12 > 0 ? event.clientY - box.height - 12 : event.clientY + 16) + "px";
}
function hideTip() { tip.hidden = true; }

// Lines over two number axes. series: {i, name, points: [[x, y, note?]], dots}; an axis: {label, low, high, format}
function lineChart(host, series, x, y, ideal) {
  const width = host.clientWidth, height = clamp(width * 0.62, 220, 320);
  const left = 54, right = 10, top = 8, bottom = 40;
  const px = (v) => left + ((v - x.low) / (x.high - x.low)) * (width - left - right);
  const py = (v) => height - bottom - ((v - y.low) / (y.high - y.low)) * (height - top - bottom);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${y.label} over ${x.label}` });
  for (const v of ticks(y.low, y.high, 5)) {
    root.append(svg("line", { x1: left, x2: width - right, y1: py(v), y2: py(v), class: "grid" }));
    root.append(svg("text", { x: left - 7, y: py(v) + 4, "text-anchor": "end" }, y.format(v)));
  }
  for (const v of ticks(x.low, x.high, width < 420 ? 4 : 6)) {
    root.append(svg("line", { x1: px(v), x2: px(v), y1: height - bottom, y2: height - bottom + 4, class: "axis" }));
    root.append(svg("text", { x: px(v), y: height - bottom + 17, "text-anchor": "middle" }, x.format(v)));
  }
  root.append(svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }));
  root.append(svg("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, x.label));
  root.append(svg("text", { x: -(top + height - bottom) / 2, y: 11, "text-anchor": "middle", transform: "rotate(-90)" }, y.label));
  if (ideal) {
    const low = Math.max(x.low, y.low), high = Math.min(x.high, y.high);
    root.append(svg("path", { d: `M${px(low)},${py(low)}L${px(high)},${py(high)}`, class: "ideal" }));
  }
  const points = [];
  for (const one of series) {
    const path = one.points.map(([a, b], k) => `${k ? "L" : "M"}${px(a).toFixed(1)},${py(b).toFixed(1)}`).join("");
    root.append(svg("path", { d: path, fill: "none", stroke: color(one.i), "stroke-width": 2, "stroke-dasharray": dash(one.i), "stroke-linejoin": "round", opacity: one.opacity ?? 1 }));
    if (one.dots || one.points.length === 1) for (const [a, b] of one.points) root.append(mark(one.i, px(a), py(b), 3.8));
    for (const [a, b, note] of one.points) points.push([px(a), py(b), `${one.name}\n${x.say(a)}, ${y.say(b)}${note ? `, ${note}` : ""}`]);
  }
  const halo = svg("circle", { r: 7, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5, visibility: "hidden" });
  root.append(halo);
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect(), scale = width / box.width;
    const mx = (event.clientX - box.left) * scale, my = (event.clientY - box.top) * scale;
    let best = null, distance = 32 ** 2; // pixels
    for (const point of points) {
      const d = (point[0] - mx) ** 2 + (point[1] - my) ** 2;
      if (d < distance) [best, distance] = [point, d];
    }
    halo.setAttribute("visibility", best ? "visible" : "hidden");
    if (!best) return hideTip();
    halo.setAttribute("cx", best[0]);
    halo.setAttribute("cy", best[1]);
    showTip(event, best[2]);
  });
  root.addEventListener("pointerleave", () => { halo.setAttribute("visibility", "hidden"); hideTip(); });
  host.replaceChildren(root);
}

// Marks on horizontal lines. lines: {name, marks: [{i, v, note}], bar: [low, high], ticks: [], paper}
function dotChart(host, lines, axis, rowHeight) {
  const width = host.clientWidth, narrow = width < 560;
  const longest = Math.max(...lines.map((line) => line.name.length));
  const left = narrow ? 8 : clamp(longest * 7 + 16, 90, width * 0.36), right = axis.values ? 58 : 14;
  const each = narrow ? rowHeight + 18 : rowHeight, top = 4, bottom = 42;
  const height = top + lines.length * each + bottom;
  const px = (v) => left + ((v - axis.low) / (axis.high - axis.low)) * (width - left - right);
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": axis.label });
  for (const v of ticks(axis.low, axis.high, narrow ? 4 : 8)) {
    root.append(svg("line", { x1: px(v), x2: px(v), y1: top, y2: height - bottom, class: "grid" }));
    root.append(svg("text", { x: px(v), y: height - bottom + 16, "text-anchor": "middle" }, axis.format(v)));
  }
  root.append(svg("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, axis.label));
  lines.forEach((line, k) => {
    const y = top + k * each + (narrow ? each - rowHeight / 2 : each / 2);
    const room = narrow ? Math.floor(width / 7.2) : Math.floor((left - 12) / 6.8);
    const name = line.name.length > room ? line.name.slice(0, room - 1) + "…" : line.name;
    const label = svg("text", { x: narrow ? 0 : left - 12, y: narrow ? y - rowHeight / 2 + 4 : y + 4, "text-anchor": narrow ? "start" : "end", class: "name" }, name);
    label.append(svg("title", {}, line.name));
    root.append(label, svg("line", { x1: left, x2: width - right, y1: y, y2: y, class: "grid" }));
    if (line.bar) root.append(svg("line", { x1: px(line.bar[0]), x2: px(line.bar[1]), y1: y, y2: y, stroke: color(line.marks[0].i), "stroke-width": 5, "stroke-linecap": "round", opacity: 0.4 }));
    for (const v of line.ticks ?? []) root.append(svg("line", { x1: px(v), x2: px(v), y1: y - 7, y2: y + 7, stroke: color(line.marks[0].i), "stroke-width": 1.5 }));
    if (line.paper) {
      const d = `M${px(line.paper)},${y - 7}l7,7l-7,7l-7,-7Z`;
      const diamond = svg("path", { d, class: "paper" });
      diamond.append(svg("title", {}, `the paper: ${percent(line.paper, 2)}`));
      root.append(diamond);
    }
    for (const one of line.marks) {
      const shape = mark(one.i, px(one.v), y, 5);
      shape.addEventListener("pointermove", (event) => showTip(event, one.note));
      shape.addEventListener("pointerleave", hideTip);
      root.append(shape);
    }
    if (axis.values) root.append(svg("text", { x: width, y: y + 4, "text-anchor": "end", class: "value" }, percent(line.marks[0].v)));
  });
  host.replaceChildren(root);
}

function empty(host, why) { host.replaceChildren(html("p", { class: "soft" }, why)); }

const PERCENT = { format: (v) => (100 * v).toFixed(0), say: (v) => percent(v) };

function draw(section, group, visible) {
  if (section.hidden) return;
  const host = (name) => section.querySelector(`[data-chart=${name}]`);
  const cells = group.cells.map((cell, i) => ({ ...cell, i })), shown = cells.filter((cell) => visible.has(cell.i));

  const ends = cells.flatMap((cell) => [...cell.interval, cell.accuracy, ...cell.seeds, ...(cell.paper ? [cell.paper] : [])]);
  const low = Math.max(0, Math.min(...ends) - 0.02), high = Math.min(1, Math.max(...ends) + 0.02);
  dotChart(host("accuracy"), cells.map((cell) => ({
    name: cell.label, bar: cell.interval, ticks: cell.seeds, paper: cell.paper,
    marks: [{ i: cell.i, v: cell.accuracy, note: `${cell.label}\n${percent(cell.accuracy, 2)}, interval ${percent(cell.interval[0])} to ${percent(cell.interval[1])}${cell.seeds.length ? `\nseeds: ${cell.seeds.map((s) => percent(s)).join(", ")}` : ""}` }],
  })), { label: "accuracy (%)", low, high, values: true, ...PERCENT, format: (v) => +(100 * v).toFixed(1) }, 28);

  for (const [name, label] of [["loss", "loss (nats)"], ["eval_accuracy", "accuracy (%)"]]) {
    const series = shown.flatMap((cell) => cell.curves.filter((curve) => curve[name].length).map((curve, k) => (
      { i: cell.i, name: cell.label + (cell.curves.length > 1 ? ` (${k + 1} of ${cell.curves.length} seeds)` : ""), points: curve[name], dots: name !== "loss", opacity: cell.curves.length > 1 ? 0.75 : 1 })));
    if (!series.length) { empty(host(name), "None of the runs shown logged it."); continue; }
    const xs = series.flatMap((one) => one.points.map((p) => p[0])), ys = series.flatMap((one) => one.points.map((p) => p[1]));
    const share = name !== "loss", pad = (Math.max(...ys) - Math.min(...ys) || 0.1) * 0.1;
    const y = share ? { low: Math.max(0, Math.min(...ys) - pad), high: Math.min(1, Math.max(...ys) + pad), ...PERCENT, format: (v) => +(100 * v).toFixed(1) }
      : { low: 0, high: Math.max(...ys) * 1.05 || 1, format: (v) => v, say: (v) => v.toFixed(3) };
    lineChart(host(name), series, { label: "epochs", low: 0, high: Math.max(...xs), format: (v) => v, say: (v) => `epoch ${+v.toFixed(2)}` }, { label, ...y });
  }

  const unit = { low: 0, high: 1, ...PERCENT };
  const series = (key, note) => shown.map((cell) => ({ i: cell.i, name: cell.label, points: cell[key].map((p) => (note ? [p[0], p[1], note(p)] : p)), dots: Boolean(note) }));
  if (!shown.length) for (const name of ["reliability", "coverage", "f1"]) empty(host(name), "No run is selected.");
  else {
    const lowest = Math.min(...shown.flatMap((cell) => cell.reliability.map((p) => p[0])));
    lineChart(host("reliability"), series("reliability", (p) => `${count(p[2])} rows`), { ...unit, low: lowest > 0.5 ? 0.5 : lowest > 0.2 ? 0.2 : 0, label: "mean confidence (%)", say: (v) => `confidence ${percent(v)}` }, { ...unit, label: "accuracy (%)", say: (v) => `right ${percent(v)}` }, true);
    const risk = Math.max(0.05, ...shown.flatMap((cell) => cell.coverage.map((p) => p[1])));
    lineChart(host("coverage"), series("coverage"), { ...unit, label: "rows labelled, most confident first (%)", say: (v) => `${percent(v)} labelled` }, { ...unit, high: Math.min(1, risk * 1.08), label: "wrong among those (%)", say: (v) => `${percent(v)} wrong` });
    dotChart(host("f1"), group.labels.map((label, c) => ({
      name: `${label} (${count(group.support[c])})`,
      marks: shown.map((cell) => ({ i: cell.i, v: cell.f1[c], note: `${cell.label}\n${label}: F1 ${cell.f1[c].toFixed(3)}` })),
    })), { label: "F1", low: 0, high: 1, format: (v) => v }, 24);
  }
}

function legend(section, group, visible, redraw) {
  const box = section.querySelector(".legend");
  group.cells.forEach((cell, i) => {
    const line = svg("svg", { viewBox: "0 0 26 10" });
    line.append(svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: color(i), "stroke-width": 2.5, "stroke-dasharray": dash(i) }), mark(i, 13, 5, 3.6));
    const chip = html("button", { class: "chip", "aria-pressed": String(visible.has(i)) }, line, title(cell));
    chip.addEventListener("click", () => {
      if (!visible.delete(i)) visible.add(i);
      chip.setAttribute("aria-pressed", String(visible.has(i)));
      redraw();
    });
    box.append(chip);
  });
  if (group.cells.length > MAX_LINES) box.append(html("span", { class: "soft" }, `The best ${MAX_LINES} of ${group.cells.length} are shown initially.`));
}

function confusion(section, group) {
  const pick = section.querySelector(".pick"), table = section.querySelector(".confusion");
  group.cells.forEach((cell, i) => pick.append(html("option", { value: i }, title(cell))));
  const show = () => {
    const matrix = group.cells[+pick.value].confusion;
    const few = group.labels.length <= 6;
    const head = html("tr", {}, html("th"), ...group.labels.map((label, c) => html("th", { scope: "col", title: label }, few ? label : String(c + 1))));
    const body = matrix.map((row, r) => {
      const total = row.reduce((a, b) => a + b, 0);
      return html("tr", {}, html("th", { scope: "row" }, few ? group.labels[r] : `${r + 1} ${group.labels[r]}`), ...row.map((n, c) => {
        const share = total ? n / total : 0;
        const cell = html("td", { class: n ? (share > 0.55 ? "strong" : "") : "none", title: `${group.labels[r]} predicted as ${group.labels[c]}: ${count(n)} rows, ${percent(share)}` }, count(n));
        cell.style.setProperty("--share", share);
        return cell;
      }));
    });
    table.replaceChildren(html("thead", {}, head), html("tbody", {}, ...body));
  };
  pick.addEventListener("change", show);
  show();
}

function marked(text, needle) {
  if (!needle) return [text];
  const parts = [], lower = text.toLowerCase();
  let at = 0;
  // a character may change length in lower case (İ): then nothing is highlighted
  if (lower.length !== text.length) return [text];
  for (let hit; (hit = lower.indexOf(needle, at)) >= 0; at = hit + needle.length) parts.push(text.slice(at, hit), html("mark", {}, text.slice(hit, hit + needle.length)));
  return [...parts, text.slice(at)];
}

function disagreements(section, group) {
  const box = section.querySelector(".rows"), find = (name) => box.querySelector(name);
  const { rows, differ, all_wrong, all_right, left_out } = group.rows;
  find(".counts").textContent = `Of ${count(group.n)} rows, models disagree on ${count(differ)} and all give the same wrong answer on ${count(all_wrong)}; ` +
    `${count(all_right)} that all label correctly are not listed.` + (left_out ? ` ${count(left_out)} more are left out to keep this page small.` : "");
  group.labels.forEach((label, i) => find(".truth").append(html("option", { value: i }, label)));
  group.cells.forEach((cell, i) => find(".miss").append(html("option", { value: i }, `wrong by ${cell.label}`)));
  let shown = PAGE;
  const render = () => {
    const needle = find("[type=search]").value.trim().toLowerCase();
    const kind = find(".kind").value, truth = find(".truth").value, miss = find(".miss").value;
    const found = rows.filter(([text, , label, answers]) => {
      const same = answers.every((answer) => answer === answers[0]);
      return (!needle || text.toLowerCase().includes(needle)) && (!kind || (kind === "differ") !== same) &&
        (truth === "" || label === +truth) && (miss === "" || answers[+miss] !== label);
    });
    find(".found").textContent = `${count(found.length)} ${found.length === 1 ? "row" : "rows"} found, ${count(Math.min(shown, found.length))} shown.`;
    find(".more").hidden = found.length <= shown;
    find(".list").replaceChildren(...found.slice(0, shown).map(([text, where, label, answers, confidence]) => {
      const by = new Map();
      answers.forEach((answer, i) => by.set(answer, [...(by.get(answer) ?? []), `${group.cells[i].label} ${confidence[i]} %`]));
      if (!by.has(label)) by.set(label, ["no run"]);
      const order = [...by.keys()].sort((a, b) => (b === label) - (a === label) || by.get(b).length - by.get(a).length);
      return html("div", { class: "row" },
        html("blockquote", {}, ...marked(text, needle)),
        html("div", { class: "answers" }, ...order.flatMap((answer) => [
          html("b", { class: answer === label ? "right" : "wrong" }, `${answer === label ? "✓" : "✗"} ${group.labels[answer]}`),
          html("span", { class: "who" }, by.get(answer).join(" · "))])),
        html("div", { class: "where" }, where));
    }));
  };
  for (const control of box.querySelectorAll(".bar input, .bar select")) control.addEventListener("input", () => { shown = PAGE; render(); });
  find(".more").addEventListener("click", () => { shown += PAGE; render(); });
  render();
}

function sortable(table) {
  table.querySelectorAll("thead button").forEach((button, column) => button.addEventListener("click", () => {
    const head = button.closest("th"), body = table.tBodies[0];
    const down = head.getAttribute("aria-sort") !== "descending" && (head.getAttribute("aria-sort") === "ascending" || column > 1);
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => {
      const cell = row.cells[column];
      return cell.dataset.v !== undefined ? +cell.dataset.v : column > 1 ? null : cell.textContent;
    };
    const sorted = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null); // missing values come last in either order
      return (typeof x === "string" ? x.localeCompare(y) : x - y) * (down ? -1 : 1);
    });
    body.append(...sorted);
  }));
}

const sections = [...document.querySelectorAll(".group")], tabs = [...document.querySelectorAll("[role=tab]")];
const redraws = sections.map((section, g) => {
  const group = GROUPS[g], visible = new Set(group.cells.slice(0, MAX_LINES).keys());
  const redraw = () => draw(section, group, visible);
  legend(section, group, visible, redraw);
  confusion(section, group);
  disagreements(section, group);
  section.querySelectorAll(".figures").forEach(sortable);
  return redraw;
});
function choose(g) {
  sections.forEach((section, k) => { section.hidden = tabs.length > 0 && k !== g; });
  tabs.forEach((tab, k) => tab.setAttribute("aria-selected", String(k === g)));
  redraws[g]();
}
tabs.forEach((tab, g) => tab.addEventListener("click", () => choose(g)));
choose(0);
let width = innerWidth;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; redraws.forEach((redraw) => redraw()); } });
addEventListener("scroll", hideTip, { passive: true });
