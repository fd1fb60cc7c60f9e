// The table and the heat maps, and what a click changes. Comes after charts.js in one script.

const table = document.getElementById("table"), body = table.tBodies[0], filter = document.getElementById("filter");
const lines = [...body.rows], ticked = (line) => line.querySelector("input").checked;
const byRow = (line) => Number(line.dataset.row);

function refresh() {
  const wanted = filter.value.trim().toLowerCase();
  shown.clear();
  for (const line of lines) {
    const fits = line.cells[0].textContent.toLowerCase().includes(wanted);
    line.hidden = !fits;
    line.classList.toggle("off", !ticked(line));
    if (fits && ticked(line)) shown.add(byRow(line));
  }
  for (const picture of document.querySelectorAll("figure[data-row]")) picture.hidden = !shown.has(Number(picture.dataset.row));
  hideTip();
  draw();
}

function draw() {
  if (Object.keys(data.costs).length) drawCost();
  if (data.metrics.length) drawCurves();
  drawGrids();
  drawClasses();
}

// Numbers from large to small first, what is empty always last; the first column as it came.
function sortBy(column) {
  const heads = [...table.tHead.rows[0].cells], before = heads[column].getAttribute("aria-sort");
  const first = column === 0 ? "ascending" : "descending", other = column === 0 ? "descending" : "ascending";
  const order = before === first ? other : first;
  heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? order : "none"));
  const value = (line) => line.cells[column].dataset.value;
  const sign = order === "ascending" ? 1 : -1;
  const compare = (a, b) => (a === "" ? 1 : b === "" ? -1 : sign * (Number(a) - Number(b)));
  lines.sort((a, b) => (value(a) === value(b) ? byRow(a) - byRow(b) : compare(value(a), value(b))));
  body.append(...lines);
}

function hover(cell, words) {
  const say = () => {
    const at = cell.getBoundingClientRect();
    showTip(words, at.left + at.width / 2, at.top + at.height / 2);
  };
  cell.tabIndex = 0;
  cell.setAttribute("aria-label", words.replaceAll("\n", "; "));
  for (const event of ["pointerenter", "focus"]) cell.addEventListener(event, say);
  for (const event of ["pointerleave", "blur"]) cell.addEventListener(event, hideTip);
}

const head = (words, scope) => make("th", { scope }, words);

function drawGrids() {
  const found = data.grids.map((grid) => ({ ...grid, cells: grid.cells.filter((cell) => shown.has(cell[2])) }));
  const means = found.flatMap((grid) => grid.cells.map((cell) => data.rows[cell[2]].mean));
  // hundredths of a point must not look like black and white
  const high = Math.max(...means), low = Math.min(...means, high - (data.perCent ? 0.01 : 0)), span = high - low || 1;
  const tables = found.filter((grid) => grid.cells.length).map((grid) => {
    const axis = (i) => [...new Set(grid.cells.map((cell) => cell[i]))].sort((a, b) => a - b);
    const heat = make("table", { class: "heat" }, make("caption", {}, grid.title + ", " + data.metricName));
    heat.append(make("thead", {}, make("tr", {}, head("P_h \\ P_w", "col"), ...axis(1).map((w) => head(String(w), "col")))));
    const rows = make("tbody");
    for (const h of axis(0)) {
      const line = make("tr", {}, head(String(h), "row"));
      for (const w of axis(1)) {
        const cell = make("td"), place = (grid.cells.find((c) => c[0] === h && c[1] === w) || [])[2];
        if (place !== undefined) {
          const row = data.rows[place], spread = row.sd === null ? "" : ` ± ${score(row.sd, data.perCent)}`;
          cell.textContent = data.perCent ? (100 * row.mean).toFixed(2) : score(row.mean, false);
          cell.style.background = `rgba(var(--good), ${0.08 + (0.5 * (row.mean - low)) / span})`;
          hover(cell, `${row.label}\n${score(row.mean, data.perCent)}${spread}, ${row.scores.length} seeds`);
        }
        line.append(cell);
      }
      rows.append(line);
    }
    heat.append(rows);
    return heat;
  });
  document.getElementById("grids").replaceChildren(...tables);
}

// Classes downwards: there may be many, and a page is longer than wide.
function drawClasses() {
  const heat = document.getElementById("classes"), gaps = data.classGaps.filter(([place]) => shown.has(place));
  const reach = Math.max(1, ...gaps.flatMap(([, values]) => values.map((v) => Math.abs(v || 0))));
  const base = data.baseline === null ? null : data.rows[data.baseline];
  const top = make("tr", {}, head("class", "col"), ...(base ? [head(`${base.label} (baseline)`, "col")] : []));
  top.append(...gaps.map(([place]) => head(data.rows[place].label, "col")));
  const rows = data.classes.map((name, i) => {
    const line = make("tr", {}, head(name, "row"), make("td", {}, score(base.classes[name], true)));
    for (const [place, values] of gaps) {
      const value = values[i], cell = make("td", { "data-row": place });
      if (value !== null) {
        cell.textContent = (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(1);
        cell.style.background = `rgba(var(${value > 0 ? "--more" : "--less"}), ${0.6 * Math.sqrt(Math.abs(value) / reach)})`; // root: one bad row hides no small difference
        hover(cell, `${data.rows[place].label}, ${name}\n${score(data.rows[place].classes[name], true)}, baseline ${score(base.classes[name], true)}`);
      } else cell.textContent = "–";
      line.append(cell);
    }
    return line;
  });
  heat.replaceChildren(make("thead", {}, top), make("tbody", {}, ...rows));
}

function begin() {
  const fill = (id, options, chosen) => {
    for (const [value, name] of options) document.getElementById(id).append(make("option", { value }, name));
    if (options.some(([value]) => value === chosen)) document.getElementById(id).value = chosen;
  };
  fill("cost-axis", Object.entries(data.costs), Object.keys(data.costs)[0]);
  fill("curve-metric", data.metrics.map((metric) => [metric, metric]), data.metric);
  document.getElementById("cost-section").hidden = !Object.keys(data.costs).length;
  document.getElementById("curve-section").hidden = !data.metrics.length;
  document.getElementById("grid-section").hidden = !data.grids.length;
  document.getElementById("class-section").hidden = !data.classGaps.length;
  [...table.tHead.rows[0].cells].forEach((cell, column) => cell.firstChild.addEventListener("click", () => sortBy(column)));
  for (const line of lines) line.querySelector("input").addEventListener("change", refresh);
  for (const [id, value] of [["all", true], ["none", false]])
    document.getElementById(id).addEventListener("click", () => {
      for (const line of lines) if (!line.hidden) line.querySelector("input").checked = value;
      refresh();
    });
  filter.addEventListener("input", refresh);
  for (const id of ["cost-axis", "cost-log"]) document.getElementById(id).addEventListener("change", drawCost);
  for (const id of ["curve-metric", "curve-seeds"]) document.getElementById(id).addEventListener("change", drawCurves);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
  addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((node) => (node.open = true)));
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) draw(); // a phone's address bar comes and goes without a change of width
    width = innerWidth;
  });
  refresh();
}

begin();
