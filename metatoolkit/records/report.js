"use strict";
(() => {
  // Whatever comes out of the database reaches the page as text nodes and numbers only.
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const COLORS = ["#2671d9", "#d9542b", "#2a9d4b", "#9b4dca", "#b8860b", "#0e9aa7", "#d1498b",
    "#6b7280", "#7a5230", "#4c51bf"];
  const SHOWN = 30;
  const filter = queryFilter(data.tables);
  for (const run of data.runs) run.record = filter.revive(run.record);
  const state = { sort: "started", down: true, chosen: new Set() };

  function make(tag, text, parent) {
    const element = document.createElement(tag);
    if (text !== undefined && text !== null) element.textContent = text;
    if (parent) parent.appendChild(element);
    return element;
  }

  function draw(tag, attributes, parent) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.appendChild(element);
    return element;
  }

  function shown(value) {
    if (value === undefined || value === null) return "";
    if (typeof value === "number") return String(Number(value.toPrecision(6)));
    return typeof value === "string" ? value : JSON.stringify(value);
  }

  function compare(a, b) {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return shown(a).localeCompare(shown(b), undefined, { numeric: true });
  }

  // Words that a run must hold somewhere, and comparisons in short: config.lr>0.1 evograd.
  function term(word) {
    const found = /^([^<>=!]+)(<=|>=|!=|=|<|>)(.*)$/.exec(word);
    if (!found || !data.columns.includes(found[1])) {
      const small = word.toLowerCase();
      return (run) => data.columns.some((c) => shown(run.values[c]).toLowerCase().includes(small));
    }
    const [, column, operator, wanted] = found;
    return (run) => {
      const value = run.values[column];
      if (operator === "=") return shown(value) === wanted;
      if (operator === "!=") return shown(value) !== wanted;
      if (value === null || value === undefined) return false;
      const order = compare(value, typeof value === "number" ? Number(wanted) : wanted);
      if (Number.isNaN(order)) return false;
      return { "<": order < 0, ">": order > 0, "<=": order <= 0, ">=": order >= 0 }[operator];
    };
  }

  // The command line's own expressions; what is none is taken for words.
  function condition(text) {
    if (!text.trim()) return () => true;
    try {
      const query = filter.parse(text);
      byId("problem").textContent = "";
      return query;
    } catch (error) {
      const meant = /==|\b(and|or|not|in)\b.*[<>=(]|^\s*\w+\(/.test(text);
      byId("problem").textContent = meant ? error.message : "";
      if (meant) return () => false;
    }
    const terms = text.split(/\s+/).filter(Boolean).map(term);
    return (run) => terms.every((one) => one(run));
  }

  function filtered() {
    const holds = condition(byId("filter").value);
    const status = byId("status").value;
    const runs = data.runs.filter((run) => (!status || run.values.status === status) && holds(run));
    const empty = (run) => run.values[state.sort] === undefined || run.values[state.sort] === null;
    const full = runs.filter((run) => !empty(run));
    full.sort((a, b) => compare(a.values[state.sort], b.values[state.sort]) * (state.down ? -1 : 1));
    return full.concat(runs.filter(empty));
  }

  function differing(runs, prefix) {
    return data.columns.filter((column) => column.startsWith(prefix)
      && new Set(runs.map((run) => JSON.stringify(run.values[column]))).size > 1);
  }

  // The entries that differ, choices before numbers, without those that change no number.
  function settings(runs) {
    const numbers = (name) => runs.some((run) => typeof run.values[name] === "number");
    const rank = (name) => [Number(numbers(name)), name.split(".").length, name.length];
    return differing(runs, "config.").filter((name) => data.settings.includes(name))
      .map((name) => ({ name, rank: rank(name) }))
      .sort((a, b) => a.rank.map((one, i) => one - b.rank[i]).find(Boolean) ?? 0)
      .map((one) => one.name);
  }

  // The fewest of them that tell as many runs apart as all do.
  function telling(runs, names) {
    const count = (chosen) => new Set(runs.map((run) => JSON.stringify(chosen.map((n) => run.values[n])))).size;
    const wanted = count(names);
    const found = [];
    while (count(found) < wanted) {
      const gain = (name) => count([...found, name]);
      found.push(names.reduce((best, name) => (gain(name) > gain(best) ? name : best)));
    }
    return found;
  }

  function columns(runs) {
    if (byId("every").checked) return data.columns;
    const results = data.columns.filter((column) => column.startsWith("result."));
    const fixed = ["experiment", "status", "started", "duration", "tags"];
    return ["id", ...settings(runs), ...results, ...fixed];
  }

  function table(runs) {
    const names = columns(data.runs);
    const head = byId("runs").tHead;
    head.replaceChildren();
    const row = make("tr", null, head);
    make("th", "", row);
    for (const name of names) {
      const mark = name === state.sort ? (state.down ? " ▼" : " ▲") : "";
      make("th", name + mark, row).addEventListener("click", () => {
        state.down = name === state.sort ? !state.down : false;
        state.sort = name;
        render();
      });
    }
    const rows = runs.map((run) => {
      const line = document.createElement("tr");
      const box = make("input", null, make("td", null, line));
      box.type = "checkbox";
      box.checked = state.chosen.has(run.id);
      box.setAttribute("aria-label", `run ${run.id}`);
      box.addEventListener("change", () => {
        if (box.checked) state.chosen.add(run.id); else state.chosen.delete(run.id);
        below();
      });
      for (const name of names) {
        const cell = make("td", shown(run.values[name]), line);
        cell.title = cell.textContent;
        if (name === "status" && /^[A-Z_]+$/.test(cell.textContent)) {
          cell.className = cell.textContent;
        }
      }
      return line;
    });
    byId("runs").tBodies[0].replaceChildren(...rows);
    byId("count").textContent = `${runs.length} of ${data.runs.length} runs`;
  }

  function chosen() {
    const runs = filtered();
    const some = runs.filter((run) => state.chosen.has(run.id));
    return some.length ? some : runs;
  }

  function groups(runs, metric, over) {
    const having = runs.filter((run) => run.curves[metric]);
    const names = settings(having).filter((name) => name !== over && name !== "config.seed");
    const apart = over && over !== "config.seed" && differing(having, "config.seed").length
      ? ["config.seed", ...names] : names;
    const labels = telling(having, apart);
    const found = new Map();
    for (const run of having) {
      const told = labels.map((name) => `${name.slice(7)}=${shown(run.values[name])}`).join(", ");
      const label = over ? (told || run.values.experiment) : `${shown(run.id)}${told ? ": " : ""}${told}`;
      // Averaged are runs that differ in nothing else, whatever their label says.
      const key = over ? JSON.stringify(apart.map((name) => run.values[name])) : shown(run.id);
      if (!found.has(key)) found.set(key, { label, curves: [] });
      found.get(key).curves.push(run.curves[metric]);
    }
    return [...found.values()].map(({ label, curves }) => ({ label, points: average(curves) }));
  }

  function average(curves) {
    const at = new Map();
    for (const curve of curves) {
      curve.steps.forEach((step, index) => {
        const value = curve.values[index];
        if (value === null) return;
        if (!at.has(step)) at.set(step, []);
        at.get(step).push(value);
      });
    }
    return [...at].sort((a, b) => a[0] - b[0]).map(([step, values]) => {
      const mean = values.reduce((sum, one) => sum + one, 0) / values.length;
      const square = values.reduce((sum, one) => sum + (one - mean) ** 2, 0);
      const spread = values.length > 1 ? Math.sqrt(square / (values.length - 1)) : 0;
      return { step, mean, low: mean - spread, high: mean + spread };
    });
  }

  function ticks(low, high, log) {
    if (log) {
      const first = Math.ceil(Math.log10(low) - 1e-9);
      const last = Math.floor(Math.log10(high) + 1e-9);
      const every = Math.max(1, Math.ceil((last - first + 1) / 8));
      const found = [];
      for (let power = first; power <= last; power += every) found.push(10 ** power);
      return found.length ? found : [low, high];
    }
    const raw = (high - low) / 6 || 1;
    const scale = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((one) => one * scale).find((one) => one >= raw);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
      found.push(Math.abs(value) < step * 1e-9 ? 0 : value);
    }
    return found;
  }

  function axis(points, pick, log) {
    let low = Infinity;
    let high = -Infinity;
    for (const point of points) {
      for (const value of pick(point)) {
        if (log && value <= 0) continue;
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    if (!(low <= high)) return null;
    if (low === high) { low = log ? low / 2 : low - 0.5; high = log ? high * 2 : high + 0.5; }
    const change = log ? Math.log10 : (value) => value;
    return { low, high, log, at: (v) => (change(v) - change(low)) / (change(high) - change(low)) };
  }

  function curves(runs) {
    const place = byId("curves");
    place.replaceChildren();
    byId("legend").replaceChildren();
    const metric = byId("metric").value;
    const logx = byId("logx").checked;
    const logy = byId("logy").checked;
    let found = groups(runs, metric, byId("over").value);
    const all = found.length;
    found = found.slice(0, SHOWN);
    const points = found.flatMap((one) => one.points);
    const x = axis(points, (point) => [point.step], logx);
    const y = axis(points, (point) => [point.mean, point.low, point.high], logy);
    if (!x || !y) { make("p", "Nothing to draw.", place); return; }
    const [width, height, left, bottom, top] = [900, 420, 80, 40, 10];
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" }, place);
    const px = (step) => left + x.at(step) * (width - left - 15);
    const py = (value) => height - bottom - y.at(value) * (height - bottom - top);
    for (const value of ticks(x.low, x.high, logx)) {
      draw("line", { x1: px(value), x2: px(value), y1: top, y2: height - bottom,
        stroke: "#8883" }, svg);
      draw("text", { x: px(value), y: height - bottom + 16, "text-anchor": "middle" }, svg)
        .textContent = shown(value);
    }
    for (const value of ticks(y.low, y.high, logy)) {
      draw("line", { x1: left, x2: width - 15, y1: py(value), y2: py(value), stroke: "#8883" }, svg);
      draw("text", { x: left - 8, y: py(value) + 4, "text-anchor": "end" }, svg)
        .textContent = shown(value);
    }
    draw("text", { x: (width + left) / 2, y: height - 6, "text-anchor": "middle" }, svg)
      .textContent = "step";
    const usable = (point) => (!logx || point.step > 0) && (!logy || point.mean > 0);
    found.forEach((one, index) => {
      const color = COLORS[index % COLORS.length];
      const dash = ["", "6 3", "2 3"][Math.floor(index / COLORS.length)];
      const drawn = one.points.filter(usable);
      const floor = (value) => (logy && value <= 0 ? y.low : value);
      if (drawn.some((point) => point.high > point.low)) {
        const upper = drawn.map((point) => `${px(point.step)},${py(floor(point.high))}`);
        const lower = drawn.map((point) => `${px(point.step)},${py(floor(point.low))}`).reverse();
        draw("polygon", { points: [...upper, ...lower].join(" "), fill: color, opacity: 0.18,
          class: "band" }, svg);
      }
      const line = drawn.map((point) => `${px(point.step)},${py(point.mean)}`).join(" ");
      draw("polyline", { points: line, fill: "none", stroke: color, "stroke-width": 1.8,
        "stroke-dasharray": dash, class: "curve" }, svg);
      const entry = make("span", null, byId("legend"));
      make("i", null, entry).style.background = color;
      entry.appendChild(document.createTextNode(one.label));
    });
    if (all > SHOWN) make("p", `${SHOWN} of ${all} curves; filter or check runs to see others.`, place);
  }

  function differences(runs) {
    const few = runs.slice(0, SHOWN);
    const names = [...settings(few), ...differing(few, "result.")];
    const head = byId("differences").tHead;
    head.replaceChildren();
    const row = make("tr", null, head);
    make("th", "", row);
    for (const run of few) make("th", `run ${shown(run.id)}`, row);
    byId("differences").tBodies[0].replaceChildren(...names.map((name) => {
      const line = document.createElement("tr");
      make("th", name, line);
      for (const run of few) {
        const cell = make("td", shown(run.values[name]), line);
        cell.dataset.run = `run ${shown(run.id)}`;
      }
      return line;
    }));
  }

  function images(runs) {
    const figures = [];
    for (const run of runs) {
      for (const image of run.images) {
        const figure = document.createElement("figure");
        if (image.source) {
          const shownImage = make("img", null, figure);
          shownImage.src = image.source;
          shownImage.alt = image.name;
          shownImage.loading = "lazy";
        }
        make("figcaption", `run ${run.id}: ${image.name}${image.note}`, figure);
        figures.push(figure);
      }
    }
    byId("images").replaceChildren(...figures);
  }

  function below() {
    const runs = chosen();
    curves(runs);
    differences(runs);
    images(runs);
  }

  function render() {
    table(filtered());
    below();
  }

  function options(id, names, first) {
    const select = byId(id);
    if (first !== undefined) make("option", first, select).value = "";
    for (const name of names) make("option", name, select).value = name;
  }

  byId("about").textContent = data.about;
  options("status", [...new Set(data.runs.map((run) => run.values.status))].sort(), "any");
  options("metric", data.metrics);
  options("over", data.columns.filter((name) => name.startsWith("config.")), "no: one curve per run");
  if (data.over) byId("over").value = data.over;
  for (const id of ["filter", "status", "every"]) byId(id).addEventListener("input", render);
  for (const id of ["metric", "over", "logx", "logy"]) byId(id).addEventListener("input", below);
  render();
})();
