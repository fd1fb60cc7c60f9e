"use strict";
// The two charts. Everything that comes from a run becomes text by textContent or an attribute, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 7, DASHES = ["", "6 2", "2 1.6", "7 2 1.5 2"]; // as in figures.py
const SVG = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");
const shown = new Set(data.rows.map((row, place) => place)); // ticked and not filtered away

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "line", "path", "circle", "text", "title"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const text = (x, y, words, attributes = {}) => make("text", { x, y, ...attributes }, words);
const line = (x1, y1, x2, y2, name) => make("line", { x1, y1, x2, y2, class: name });
const clip = (words, letters) => (words.length > letters ? words.slice(0, letters - 1) + "…" : words);
const isShare = (metric) => data.shares.includes(metric);
const score = (value, share) => (share ? (100 * value).toFixed(2) + " %" : Number(value.toPrecision(5)).toString());

function amount(value) {
  if (value === 0) return "0";
  const power = Math.abs(value) >= 1000 ? Math.min(Math.floor(Math.log10(Math.abs(value)) / 3), 4) : 0;
  return Number((value / 1000 ** power).toPrecision(3)) + (power ? " " + "kMGT"[power - 1] : "");
}

function showTip(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 6)) + "px";
  tip.style.top = (y + 18 + box.height > innerHeight ? Math.max(4, y - box.height - 12) : y + 18) + "px";
}
const hideTip = () => (tip.hidden = true);

// Ticks at 1, 2 or 5 times a power of ten, at most `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function linear(values, from, to, pad, count) {
  let low = Math.min(...values), high = Math.max(...values);
  const margin = high > low ? (high - low) * pad : Math.abs(high) * 0.1 || 1;
  low -= margin;
  high += margin;
  return { at: (v) => from + ((v - low) / (high - low)) * (to - from), ticks: ticks(low, high, count) };
}

// A logarithmic axis has a place of its own for 0, left of the smallest cost.
function logarithmic(values, from, to, count) {
  const positive = values.filter((v) => v > 0);
  if (!positive.length) return linear(values, from, to, 0.1, count);
  const zero = Math.log10(Math.min(...positive)) - 0.7, some = values.length > positive.length;
  const place = (v) => (v > 0 ? Math.log10(v) : zero);
  const logs = values.map(place), span = Math.max(...logs) - Math.min(...logs);
  const low = Math.min(...logs) - (0.08 * span || 0.5), high = Math.max(...logs) + (0.08 * span || 0.5);
  const steps = high - low < 1.5 ? [1, 2, 3, 5, 7] : high - low < 3 ? [1, 2, 5] : [1];
  const found = some ? [0] : [];
  for (let p = Math.floor(low); p <= high; p++) {
    for (const n of steps) {
      const log = p + Math.log10(n);
      if (log >= low && log <= high && (!some || log > zero + 0.3)) found.push(n * 10 ** p);
    }
  }
  const every = Math.ceil(found.length / (count + 1));
  const kept = found.filter((v, i) => v === 0 || (i - (some ? 1 : 0)) % every === 0);
  return { at: (v) => from + ((place(v) - low) / (high - low)) * (to - from), ticks: kept };
}

// Move labels apart until neighbours are `gap` apart, from top to bottom, and back up if they run out of room.
function spreadOut(wanted, gap, top, bottom) {
  const order = wanted.map((y, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const places = [...wanted];
  let last = top - gap;
  for (const i of order) last = places[i] = Math.max(places[i], last + gap);
  last = Math.max(bottom, top + gap * (order.length - 1)) + gap;
  for (const i of order.reverse()) last = places[i] = Math.min(places[i], last - gap);
  return places;
}

function frame(host, x, y, box, xName, yName, xText, yText) {
  const svg = make("svg", { viewBox: `0 0 ${box.width} ${box.height}`, role: "group", "aria-label": `${yName} against ${xName}` });
  for (const v of y.ticks) {
    svg.append(line(box.left, y.at(v), box.right, y.at(v), "grid"));
    svg.append(text(box.left - 8, y.at(v) + 4, yText(v), { "text-anchor": "end" }));
  }
  for (const v of x.ticks) {
    svg.append(line(x.at(v), box.bottom, x.at(v), box.bottom + 5, "axis"));
    svg.append(text(x.at(v), box.bottom + 19, xText(v), { "text-anchor": "middle" }));
  }
  svg.append(line(box.left, box.bottom, box.right, box.bottom, "axis"));
  svg.append(text((box.left + box.right) / 2, box.bottom + 38, xName, { "text-anchor": "middle" }));
  svg.append(text(box.left, box.top - 12, yName));
  host.replaceChildren(svg);
  return svg;
}

function boxOf(host, names) {
  const width = Math.max(host.clientWidth, 280), wide = width > 620;
  const letters = Math.max(...names.map((name) => clip(name, 30).length), 0);
  const right = width - (wide ? Math.min(7.2 * letters + 26, 0.34 * width) : 12);
  return { width, height: wide ? 400 : 330, left: 52, right, top: 30, bottom: (wide ? 400 : 330) - 46, wide };
}

// Circle, square, triangle, diamond: the four markers of figures.py.
function marker(place, x, y, r, name) {
  const shapes = [`m${-r} 0a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`, "m-5.4-5.4h10.8v10.8h-10.8z", "m0-7l6.6 12h-13.2z", "m0-7.4l7.4 7.4l-7.4 7.4l-7.4-7.4z"];
  return make("path", { d: `M${x.toFixed(1)} ${y.toFixed(1)}` + shapes[place % 4], class: name });
}

const empty = (host, words) =>
  host.replaceChildren(make("svg", { viewBox: "0 0 600 120" }, text(300, 65, words, { class: "empty" })));

function names(svg, box, ends) {
  if (!box.wide) return; // no room: the table says which colour is which
  const places = spreadOut(ends.map((end) => end.y), 15, box.top, box.bottom);
  ends.forEach((end, i) => {
    const group = make("g", { class: `c${end.place % COLOURS}` });
    group.append(line(end.x, end.y, box.right + 4, places[i], "lead"));
    group.append(text(box.right + 8, places[i] + 4, clip(data.rows[end.place].label, 30), { class: "name" }));
    svg.append(group);
  });
}

function drawCost() {
  const host = document.getElementById("cost-chart"), key = document.getElementById("cost-axis").value;
  const log = document.getElementById("cost-log").checked, unit = data.perCent ? 100 : 1;
  const rows = [...shown].sort((a, b) => a - b).map((place) => ({ place, ...data.rows[place] }));
  const points = rows.filter((row) => row.mean !== null && row.costs[key] !== null);
  if (!points.length) return empty(host, "No row that is shown has a score and this cost.");
  const box = boxOf(host, points.map((row) => row.label)), costs = points.map((row) => row.costs[key]);
  const every = points.flatMap((row) => [row.mean - (row.sd || 0), row.mean + (row.sd || 0), ...row.scores.map((s) => s[1])]);
  const y = linear(every.map((v) => unit * v), box.bottom, box.top, 0.06, 6);
  const [from, to] = [box.left + 10, box.right - (box.wide ? 14 : 6)];
  const x = log ? logarithmic(costs, from, to, box.wide ? 9 : 5) : linear([0, ...costs], from, to, 0.04, box.wide ? 8 : 4);
  const svg = frame(host, x, y, box, data.costs[key], data.metricName, amount, (v) => String(v));
  const spots = points.map((row) => ({ place: row.place, x: x.at(row.costs[key]), y: y.at(unit * row.mean) }));
  names(svg, box, spots);
  points.forEach((row, i) => {
    const spot = spots[i], spread = row.sd === null ? "" : ` ± ${score(row.sd, data.perCent)}`;
    const words = `${row.label}\n${score(row.mean, data.perCent)}${spread}, ${row.scores.length} seeds\n${row.gap}\n${data.costs[key]}: ${amount(row.costs[key])}`;
    const group = make("g", { class: `c${row.place % COLOURS}`, tabindex: 0, role: "img", "aria-label": words.replaceAll("\n", "; "), "data-row": row.place });
    if (row.sd !== null) group.append(line(spot.x, y.at(unit * (row.mean - row.sd)), spot.x, y.at(unit * (row.mean + row.sd)), "bar"));
    for (const [, value] of row.scores) group.append(make("circle", { cx: spot.x, cy: y.at(unit * value), r: 2.6, class: "dot" }));
    group.append(marker(row.place, spot.x, spot.y, 6, "point"));
    const say = () => {
      const at = group.lastChild.getBoundingClientRect();
      showTip(words, at.left + at.width / 2, at.top + at.height / 2);
    };
    for (const event of ["pointerenter", "focus"]) group.addEventListener(event, say);
    for (const event of ["pointerleave", "blur"]) group.addEventListener(event, hideTip);
    svg.append(group);
  });
}

function curvesOf(metric) {
  const found = [], seeds = document.getElementById("curve-seeds").checked;
  for (const place of [...shown].sort((a, b) => a - b)) {
    const row = data.rows[place], mean = row.means[metric];
    for (const run of row.runs) {
      const points = run.curves[metric];
      if (points && points.length && (seeds || !mean))
        found.push({ place, points, thick: false, words: `${row.label}, seed ${run.seed}${run.state === "finished" ? "" : ", " + run.state}` });
    }
    if (mean) found.push({ place, points: mean, thick: true, words: `${row.label}, mean` });
  }
  return found;
}

function drawCurves() {
  const host = document.getElementById("curve-chart"), metric = document.getElementById("curve-metric").value;
  const curves = curvesOf(metric), unit = isShare(metric) ? 100 : 1;
  if (!curves.length) return empty(host, "No row that is shown has this metric.");
  const box = boxOf(host, curves.map((curve) => data.rows[curve.place].label));
  const flat = curves.flatMap((curve) => curve.points);
  const x = linear([0, ...flat.map((p) => p[0])], box.left, box.right - (box.wide ? 34 : 6), 0, box.wide ? 8 : 4);
  const y = linear(flat.map((p) => unit * p[1]), box.bottom, box.top, 0.04, 6);
  const svg = frame(host, x, y, box, "step", metric + (unit === 100 ? " %" : ""), (v) => String(v), (v) => String(v));
  svg.setAttribute("tabindex", 0);
  const spot = (p) => [x.at(p[0]), y.at(unit * p[1])];
  for (const curve of curves) {
    const path = curve.points.map((p, i) => (i ? "L" : "M") + spot(p).map((v) => v.toFixed(1)).join(" ")).join("");
    const group = make("g", { class: `c${curve.place % COLOURS}`, "data-row": curve.place });
    group.append(make("path", { d: path, class: curve.thick ? "mean" : "seed", "stroke-dasharray": curve.thick ? DASHES[curve.place % 4] : "" }));
    if (curve.points.length === 1) group.append(make("circle", { cx: spot(curve.points[0])[0], cy: spot(curve.points[0])[1], r: 3, class: "point" }));
    svg.append(group);
  }
  const last = new Map(); // of each row the mean, which comes last, or else a seed
  for (const curve of curves) last.set(curve.place, curve);
  names(svg, box, [...last].map(([place, curve]) => ({ place, x: spot(curve.points.at(-1))[0], y: spot(curve.points.at(-1))[1] })));
  const cursor = make("circle", { r: 5, class: "cursor", visibility: "hidden" }), holder = make("g", {}, cursor);
  svg.append(holder);
  follow(svg, box, curves, spot, cursor, holder, (curve, p) => `${curve.words}\nstep ${p[0]}: ${score(p[1], isShare(metric))}`);
}

// The nearest point under the pointer; the arrow keys go along a curve and from curve to curve.
function follow(svg, box, curves, spot, cursor, holder, words) {
  let place = { curve: 0, point: -1 };
  const mark = (curve, point) => {
    place = { curve, point };
    const p = curves[curve].points[point], [cx, cy] = spot(p), at = svg.getBoundingClientRect(), scale = at.width / box.width;
    holder.setAttribute("class", `c${curves[curve].place % COLOURS}`);
    for (const [name, value] of Object.entries({ cx, cy, visibility: "visible" })) cursor.setAttribute(name, value);
    showTip(words(curves[curve], p), at.left + cx * scale, at.top + cy * scale);
  };
  const leave = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  svg.addEventListener("pointermove", (event) => {
    const at = svg.getBoundingClientRect(), scale = at.width / box.width;
    const [px, py] = [(event.clientX - at.left) / scale, (event.clientY - at.top) / scale];
    let best = [Infinity];
    curves.forEach((curve, c) => curve.points.forEach((p, i) => {
      const [cx, cy] = spot(p), far = Math.hypot(cx - px, cy - py) * (curve.thick ? 0.8 : 1);
      if (far < best[0]) best = [far, c, i];
    }));
    if (best[0] < 60) mark(best[1], best[2]);
    else leave();
  });
  for (const event of ["pointerleave", "blur"]) svg.addEventListener(event, leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!move) return;
    event.preventDefault();
    const curve = (place.curve + move[0] + curves.length) % curves.length;
    mark(curve, Math.max(0, Math.min(place.point + move[1], curves[curve].points.length - 1)));
  });
}
