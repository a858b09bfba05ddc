"use strict";
// The table and the curves of reports/site.py's page. Data is put into text nodes and values alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const collator = new Intl.Collator("en", { numeric: true });
  const MOST_DRAWN = 30; // six colours × five kinds of dashes
  const FIRST_COLUMNS = 14;
  const AT_ONCE = 60; // rows
  const MISSING = new Set(["", "-"]);

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children); // texts become text nodes
    return element;
  };
  const draw = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };

  // ------------------------------------------------------------------------------- the table

  const count = data.arm.length;
  const runsOf = data.arms.names.map(() => []);
  data.arm.forEach((arm, run) => runsOf[arm].push(run));
  const chosen = new Set(); // runs

  // a view: {names, columns, runs: of each line, shown: names of columns, sort, rows: elements}
  const buildView = (table, runs) => {
    const columns = table.columns.map((column) => {
      const { texts } = column;
      return { ...column, texts: Array.isArray(texts) ? texts : texts.at.map((at) => texts.values[at]) };
    });
    const shown = new Set(columns.slice(0, FIRST_COLUMNS).map((column) => column.name));
    return { names: table.names, columns, runs, shown, sort: null, rows: null };
  };
  const views = {
    arms: buildView(data.arms, runsOf),
    runs: buildView(data.runs, data.arm.map((_, run) => [run])),
  };
  let view = runsOf.length < count ? views.arms : views.runs;
  const picked = new Map(); // column → the text that it must have

  const columnOf = (name) => view.columns.find((column) => column.name === name);
  const haystack = (line) => {
    view.texts ??= view.names.map((name, i) =>
      [name, ...view.columns.map((column) => column.texts[i])].join("\n").toLowerCase());
    return view.texts[line];
  };

  // "words", "accuracy > 0.8" or "lr = 1e-4": a test of one line
  const testOf = (term) => {
    const parts = /^(.+?)\s*(<=|>=|!=|=|<|>)\s*(.+)$/.exec(term);
    const column = parts && columnOf(parts[1].trim());
    if (!column) {
      const words = term.toLowerCase().split(/\s+/);
      return (line) => words.every((word) => haystack(line).includes(word));
    }
    const [, , sign, wanted] = parts;
    const limit = Number(wanted);
    return (line) => {
      const number = column.numbers?.[line];
      const numeric = number != null && !Number.isNaN(limit);
      const text = column.texts[line].toLowerCase();
      const equal = text === wanted.trim().toLowerCase() || (numeric && number === limit);
      if (sign === "=") return equal;
      if (sign === "!=") return !equal;
      if (!numeric) return false;
      return { "<": number < limit, "<=": number <= limit,
               ">": number > limit, ">=": number >= limit }[sign];
    };
  };

  // each line's place in the order of a column, downwards or upwards; what is missing comes last
  const orderBy = ({ name, down }) => {
    const column = name === null ? { texts: view.names } : columnOf(name);
    const lines = view.names.map((_, line) => line);
    const kind = (line) => // numbers before texts before nothing
      column.numbers?.[line] != null ? 0 : MISSING.has(column.texts[line]) ? 2 : 1;
    const kinds = lines.map(kind);
    const sign = down ? -1 : 1;
    return lines.sort((a, b) => kinds[a] - kinds[b] || sign * (kinds[a] === 0
      ? column.numbers[a] - column.numbers[b]
      : kinds[a] === 1 ? collator.compare(column.texts[a], column.texts[b]) : 0) || a - b);
  };

  const shownLines = () => {
    const terms = byId("search").value.split(",").map((term) => term.trim()).filter(Boolean);
    const tests = terms.map(testOf);
    for (const [name, text] of picked) {
      const column = columnOf(name);
      if (column) tests.push((line) => column.texts[line] === text);
    }
    view.order ??= view.sort ? orderBy(view.sort) : view.names.map((_, line) => line);
    return view.order.filter((line) => tests.every((test) => test(line)));
  };

  const pagesOf = (line) => view.runs[line].map((run) => data.pages[run]).filter(Boolean);
  const hasPages = data.pages.some(Boolean);

  const buildRow = (line) => {
    const name = view.names[line];
    const box = make("input", { type: "checkbox", tabindex: "-1", "aria-label": `draw ${name}` });
    const row = make("tr", { "data-line": line }, make("td", {}, box),
      make("th", { scope: "row", title: name }, make("span", {}, name)));
    if (hasPages) {
      const pages = pagesOf(line);
      row.append(make("td", {}, ...pages.flatMap((page, i) => {
        const text = pages.length > 1 ? `${i + 1}` : "page";
        const label = pages.length > 1 ? `page ${i + 1} of ${name}` : `page of ${name}`;
        return [...(i ? [" "] : []), make("a", { href: page, "aria-label": label }, text)];
      })));
    }
    for (const column of view.columns) {
      if (!view.shown.has(column.name)) continue;
      const text = column.texts[line];
      const kind = text.length > 60 ? "long" : column.numbers ? "number" : "";
      row.append(make("td", kind ? { class: kind } : {}, text));
    }
    return row;
  };

  const headings = () => {
    const heading = (name, text, numbers) => {
      const cell = make("th", { scope: "col", "aria-sort": "none" },
        make("button", { type: "button" }, text));
      if (numbers) cell.className = "number";
      // as wide whichever rows are on top
      const longest = columnOf(name)?.texts.reduce((most, each) => Math.max(most, each.length), 0);
      if (longest) cell.style.minWidth = `${Math.min(longest, 60) * 0.85}ch`;
      if (view.sort?.name === name) {
        cell.setAttribute("aria-sort", view.sort.down ? "descending" : "ascending");
      }
      cell.firstChild.addEventListener("click", () => sortBy(name, cell));
      return cell;
    };
    const all = make("input", { type: "checkbox", "aria-label": "choose all shown" });
    all.addEventListener("change", () => chooseShown(all.checked));
    const cells = [make("th", { scope: "col" }, all),
      heading(null, view === views.arms ? "setting" : "run", false)];
    if (hasPages) cells.push(make("th", { scope: "col" }, "page"));
    for (const column of view.columns) {
      if (view.shown.has(column.name)) cells.push(heading(column.name, column.name, column.numbers));
    }
    return cells;
  };

  const sortBy = (name, cell) => {
    const down = view.sort?.name === name ? !view.sort.down : Boolean(columnOf(name)?.down);
    view.sort = { name, down };
    view.order = null;
    for (const other of cell.parentNode.children) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    cell.setAttribute("aria-sort", down ? "descending" : "ascending");
    showLines();
  };

  // new columns or another view
  const showTable = () => {
    view.rows = [];
    byId("table").tHead.replaceChildren(make("tr", {}, ...headings()));
    showLines();
  };

  // Rows are built when they are scrolled to: a browser takes longest to lay them out.
  const box = byId("table-box"), body = byId("table").tBodies[0];
  let lines = []; // that are shown, in their order
  const showMore = (upTo) => {
    const from = body.childElementCount;
    if (from >= Math.min(upTo, lines.length)) return;
    const more = lines.slice(from, upTo);
    body.append(...more.map((line) => view.rows[line] ??= buildRow(line)));
    markChosen(more);
  };
  const showLines = () => {
    lines = shownLines();
    body.replaceChildren();
    box.scrollTop = 0;
    byId("table").setAttribute("aria-rowcount", lines.length + 1);
    showMore(AT_ONCE);
    if (!lines.length) {
      const words = "nothing has all of that";
      body.append(make("tr", {}, make("td", { colspan: "20", class: "empty" }, words)));
    }
    stopAt(body.querySelector("input"));
    showChosen();
  };
  // one stop of the tab key in all rows
  const stopAt = (input) => {
    for (const other of body.querySelectorAll("input[tabindex='0']")) other.tabIndex = -1;
    if (input) input.tabIndex = 0;
  };
  box.addEventListener("scroll", () => {
    if (box.scrollTop + 2 * box.clientHeight > box.scrollHeight) {
      showMore(body.childElementCount + AT_ONCE);
    }
  });
  addEventListener("beforeprint", () => showMore(lines.length));

  const numChosen = (line) => view.runs[line].filter((run) => chosen.has(run)).length;
  const markChosen = (some) => {
    for (const line of some) {
      const row = view.rows[line];
      if (!row) continue;
      const count = numChosen(line), input = row.querySelector("input");
      input.checked = count === view.runs[line].length;
      input.indeterminate = count > 0 && !input.checked;
      row.classList.toggle("chosen", count > 0);
    }
  };
  const showChosen = () => {
    markChosen(lines.slice(0, body.childElementCount));
    const on = lines.filter((line) => numChosen(line) === view.runs[line].length).length;
    const all = byId("table").tHead.querySelector("input");
    all.checked = on > 0 && on === lines.length;
    all.indeterminate = on > 0 && on < lines.length;
    for (const button of document.querySelectorAll("button[data-arm]")) {
      const runs = runsOf[button.dataset.arm];
      button.setAttribute("aria-pressed", String(runs.every((run) => chosen.has(run))));
    }
    const what = view === views.arms ? "settings" : "runs";
    byId("status").textContent = `${lines.length.toLocaleString("en")} of ` +
      `${view.names.length.toLocaleString("en")} ${what} shown, ` +
      `${chosen.size.toLocaleString("en")} ${chosen.size === 1 ? "run" : "runs"} chosen`;
  };

  const choose = (runs, on) => {
    for (const run of runs) {
      if (on) chosen.add(run);
      else chosen.delete(run);
    }
    showChosen();
    later();
  };
  const chooseShown = (on) => choose(lines.flatMap((line) => view.runs[line]), on);

  body.addEventListener("change", (event) => {
    const line = event.target.closest("tr").dataset.line;
    choose(view.runs[line], event.target.checked);
  });
  body.addEventListener("click", (event) => {
    if (event.target.closest("a, input")) return;
    const input = event.target.closest("tr")?.querySelector("input");
    if (!input || String(getSelection())) return; // somebody marks text
    input.focus({ preventScroll: true });
    input.click();
  });
  body.addEventListener("focusin", (event) => {
    if (event.target.type === "checkbox") stopAt(event.target); // tab comes back to this row
  });
  body.addEventListener("keydown", (event) => {
    const at = [...body.children].indexOf(event.target.closest("tr"));
    const wanted = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 10, PageUp: at - 10,
                     Home: 0, End: lines.length - 1 }[event.key];
    if (wanted === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    const to = Math.min(Math.max(wanted, 0), lines.length - 1);
    showMore(to + 1);
    body.children[to].querySelector("input")?.focus();
  });

  const showPicks = () => {
    const picks = byId("picks");
    picks.replaceChildren();
    const before = new Map(picked);
    picked.clear(); // what has no list to choose from here must not choose unseen
    for (const column of view.columns) {
      if (column.figure) continue;
      const values = [...new Set(column.texts)].sort(collator.compare);
      if (values.length < 2 || values.length > 20) continue;
      const select = make("select", {}, make("option", { value: "" }, "any"),
        ...values.map((text, i) => make("option", { value: String(i) }, text || "-")));
      const at = before.has(column.name) ? values.indexOf(before.get(column.name)) : -1;
      if (at >= 0) {
        picked.set(column.name, values[at]);
        select.value = String(at);
      }
      select.addEventListener("change", () => {
        if (select.value === "") picked.delete(column.name);
        else picked.set(column.name, values[select.value]);
        showLines();
      });
      picks.append(make("label", {}, column.name, select));
    }
    byId("filters").hidden = !picks.childElementCount;
  };

  const showColumns = () => {
    byId("columns").replaceChildren(...view.columns.map((column) => {
      const box = make("input", { type: "checkbox" });
      box.checked = view.shown.has(column.name);
      box.addEventListener("change", () => {
        if (box.checked) view.shown.add(column.name);
        else view.shown.delete(column.name);
        showTable();
      });
      return make("label", {}, box, column.name);
    }));
  };

  const showView = (next) => {
    view = next;
    byId("view-arms").setAttribute("aria-pressed", String(view === views.arms));
    byId("view-runs").setAttribute("aria-pressed", String(view === views.runs));
    showPicks();
    showColumns();
    showTable();
  };

  // ------------------------------------------------------------------------------ the curves

  const { names: figures, labels: figureLabels, runs: curves } = data.curves;

  // y at x between points that are known; null outside of them and in gaps
  const between = (xs, ys, x) => {
    let low = 0, high = xs.length - 1;
    if (high < 0 || x < xs[0] || x > xs[high]) return null;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle;
      else high = middle;
    }
    if (x === xs[low]) return ys[low];
    if (x === xs[high]) return ys[high];
    if (ys[low] == null || ys[high] == null) return null;
    return ys[low] + (ys[high] - ys[low]) * (x - xs[low]) / (xs[high] - xs[low]);
  };

  const lineOf = (run, figure, over) => {
    const curve = curves[run];
    if (figure === "train_loss") return curve.x?.[over] && { xs: curve.x[over], ys: curve.train };
    if (!curve[figure]) return null;
    if (over === "step") return { xs: curve.at, ys: curve[figure] };
    const steps = curve.x?.step, others = curve.x?.[over];
    if (!others) return null;
    const last = steps.length - 1;
    const xs = curve.at.map((step) => step <= steps[0] ? others[0] * step / steps[0]
      : step >= steps[last] ? others[last] * step / steps[last] : between(steps, others, step));
    return { xs, ys: curve[figure] };
  };

  // {mean, low, high: [x, y] …} of several lines, where all of them are known
  const bandOf = (lines) => {
    let xs = [...new Set(lines.flatMap((line) => line.xs))].sort((a, b) => a - b);
    if (xs.length > 600) xs = xs.filter((_, i) => i % Math.ceil(xs.length / 600) === 0);
    const band = { mean: [], low: [], high: [] };
    for (const x of xs) {
      const ys = lines.map((line) => between(line.xs, line.ys, x));
      const known = ys.every((y) => y != null);
      band.mean.push([x, known ? ys.reduce((a, b) => a + b) / ys.length : null]);
      band.low.push([x, known ? Math.min(...ys) : null]);
      band.high.push([x, known ? Math.max(...ys) : null]);
    }
    return band;
  };

  const seriesOf = (figure, over) => {
    const groups = new Map();
    const banded = byId("bands").checked;
    for (const run of [...chosen].sort((a, b) => a - b)) {
      const key = banded ? `arm ${data.arm[run]}` : `run ${run}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(run);
    }
    const found = [];
    for (const runs of groups.values()) {
      const lines = runs.map((run) => lineOf(run, figure, over)).filter(Boolean);
      if (!lines.length) continue;
      const arm = data.arm[runs[0]];
      const one = !banded || (runs.length === 1 && runsOf[arm].length > 1);
      const label = one ? data.runs.names[runs[0]] : data.arms.names[arm];
      const points = lines.length > 1 ? bandOf(lines)
        : { mean: lines[0].xs.map((x, i) => [x, lines[0].ys[i]]) };
      found.push({ label, lines, ...points });
    }
    return found;
  };

  const ticks = (low, high, about) => {
    const rough = (high - low) / about;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough);
    const found = [];
    for (let at = Math.ceil(low / step); at * step <= high + step * 1e-9; at += 1) {
      found.push(Number((at * step).toPrecision(12)));
    }
    return found;
  };
  const logTicks = (low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const times of [1, 2, 5]) found.push(Number(`${times}e${power}`));
    }
    const inside = found.filter((each) => each >= low && each <= high);
    return inside.length > 1 ? inside : ticks(low, high, 4);
  };
  const short = (value) => {
    const size = Math.abs(value);
    for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
      if (size >= unit) {
        return `${Number((value / (unit === 1e4 ? 1e3 : unit)).toPrecision(3))}${name}`;
      }
    }
    return size && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
  };

  const path = (points, place) => {
    let text = "", pen = false;
    for (const [x, y] of points) {
      const [px, py] = y == null ? [NaN, NaN] : place(x, y);
      if (Number.isFinite(px) && Number.isFinite(py)) {
        text += `${pen ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
        pen = true;
      } else pen = false;
    }
    return text;
  };
  // between two lines of the same x: a closed shape for each stretch without gaps
  const area = ({ low, high }, place) => {
    let text = "", from = -1;
    for (let i = 0; i <= low.length; i += 1) {
      const known = i < low.length && low[i][1] != null;
      if (known && from < 0) from = i;
      if (!known && from >= 0) {
        const there = path(low.slice(from, i), place);
        const back = path(high.slice(from, i).reverse(), place).replace("M", "L");
        text += `${there}${back}Z`;
        from = -1;
      }
    }
    return text;
  };

  const showCurves = () => {
    const figure = byId("figure").value, over = byId("over").value;
    const logarithmic = byId("log").checked;
    const every = seriesOf(figure, over);
    const series = every.slice(0, MOST_DRAWN);
    const chart = byId("chart");
    const legend = byId("legend");
    chart.replaceChildren();
    legend.replaceChildren();
    byId("drawn").textContent = !curves.some((curve) => curve.train || curve.at)
      ? "None of these runs has its log with it."
      : !chosen.size ? "Nothing is chosen yet."
      : !every.length ? "None of the chosen runs has this figure."
      : every.length > MOST_DRAWN ? `The first ${MOST_DRAWN} of ${every.length} are drawn.` : "";
    const allowed = ([, y]) => y != null && (!logarithmic || y > 0);
    const points = series.flatMap((each) => [...each.mean, ...(each.low ?? []),
      ...(each.high ?? [])].concat(each.lines.flatMap(({ xs, ys }) => xs.map((x, i) => [x, ys[i]]))))
      .filter(allowed);
    if (!points.length) return;

    const width = Math.max(280, chart.clientWidth), height = width < 600 ? 260 : 380;
    const edge = { left: 58, right: 12, top: 10, bottom: 40 };
    let [left, right, bottom, top] = [Infinity, -Infinity, Infinity, -Infinity];
    for (const [x, y] of points) {
      left = Math.min(left, x); right = Math.max(right, x);
      bottom = Math.min(bottom, y); top = Math.max(top, y);
    }
    if (left === right) { left -= 1; right += 1; }
    if (bottom === top) {
      [bottom, top] = logarithmic ? [bottom / 2, top * 2]
        : [bottom - (Math.abs(bottom) / 10 || 1), top + (Math.abs(top) / 10 || 1)];
    }
    const scale = logarithmic ? Math.log : (y) => y;
    const spare = logarithmic ? 0 : (top - bottom) * 0.04;
    const [low, high] = [scale(bottom - spare), scale(top + spare)];
    const atX = (x) => edge.left + (x - left) / (right - left) * (width - edge.left - edge.right);
    const atY = (y) => height - edge.bottom
      - (scale(y) - low) / (high - low) * (height - edge.top - edge.bottom);
    const place = (x, y) => logarithmic && y <= 0 ? [NaN, NaN] : [atX(x), atY(y)];

    const name = figureLabels[figures.indexOf(figure)];
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
    svg.setAttribute("aria-label", `${name} over ${over}: ${series.length} curves, listed below`);
    const text = (x, y, anchor, words) => {
      const element = draw("text", { x, y, "text-anchor": anchor });
      element.textContent = words;
      svg.append(element);
    };
    for (const y of logarithmic ? logTicks(bottom, top) : ticks(bottom, top, 5)) {
      const py = atY(y);
      svg.append(draw("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: py, y2: py }));
      text(edge.left - 7, py + 4, "end", short(y));
    }
    for (const x of ticks(left, right, width < 600 ? 4 : 8)) {
      const px = atX(x);
      svg.append(draw("line", { class: "axis", x1: px, x2: px, y1: height - edge.bottom,
        y2: height - edge.bottom + 4 }));
      text(Math.min(px, width - 16), height - edge.bottom + 18, "middle", short(x));
    }
    svg.append(draw("line", { class: "axis", x1: edge.left, x2: width - edge.right,
      y1: height - edge.bottom, y2: height - edge.bottom }));
    text(width - edge.right, height - 5, "end", over);

    series.forEach((each, i) => {
      const color = `s${i % 6}`, dashes = `d${i % 5}`;
      const group = draw("g", { class: color });
      if (each.low) {
        group.append(draw("path", { class: "band", d: area(each, place) }));
        for (const { xs, ys } of each.lines) {
          const thin = draw("path", { class: "curve", d: path(xs.map((x, k) => [x, ys[k]]), place) });
          thin.setAttribute("stroke-opacity", "0.35");
          thin.style.strokeWidth = "0.8";
          group.append(thin);
        }
      }
      group.append(draw("path", { class: `curve ${dashes}`, d: path(each.mean, place) }));
      const known = each.mean.filter(allowed);
      if (known.length < 30) {
        for (const [x, y] of known) {
          group.append(draw("circle", { class: "point", cx: atX(x), cy: atY(y), r: 2.6 }));
        }
      }
      svg.append(group);
      const sample = draw("svg", { viewBox: "0 0 32 10", class: color, "aria-hidden": "true" });
      sample.append(draw("path", { class: `curve ${dashes}`, d: "M0 5L32 5" }));
      const seeds = each.lines.length > 1 ? ` × ${each.lines.length}` : "";
      each.value = make("span", { class: "value" });
      each.end = known.length ? known[known.length - 1][0] : null;
      legend.append(make("li", {}, sample,
        make("span", { class: "name", title: each.label }, each.label + seeds), each.value));
    });

    // the values at the pointer, else the last ones
    const cursor = draw("line", { class: "axis", y1: edge.top, y2: height - edge.bottom });
    cursor.style.display = "none";
    svg.append(cursor);
    const ends = (each, x) => {
      const read = (points) => between(points.map((p) => p[0]), points.map((p) => p[1]), x);
      const mean = read(each.mean);
      if (mean == null) return "–";
      const value = mean.toPrecision(4);
      return each.low ? `${value} [${read(each.low).toPrecision(4)}, ${read(each.high).toPrecision(4)}]`
        : value;
    };
    const say = (x) => {
      for (const each of series) {
        const at = x ?? each.end;
        each.value.textContent = at == null ? "–" : ends(each, at);
      }
    };
    svg.addEventListener("pointermove", (event) => {
      const shape = svg.getBoundingClientRect();
      const px = (event.clientX - shape.left) * width / shape.width;
      const x = left + (px - edge.left) / (width - edge.left - edge.right) * (right - left);
      if (x < left || x > right) return;
      cursor.style.display = "";
      cursor.setAttribute("x1", px);
      cursor.setAttribute("x2", px);
      byId("drawn").textContent = `at ${over} ${short(x)}`;
      say(x);
    });
    svg.addEventListener("pointerleave", () => {
      cursor.style.display = "none";
      byId("drawn").textContent = "";
      say(null);
    });
    say(null);
    chart.append(svg);
  };

  let waiting = false;
  const later = () => { // once, however much is chosen in one go
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; showCurves(); });
  };

  // ------------------------------------------------------------------------------- beginning

  figures.forEach((name, i) => byId("figure").append(make("option", { value: name }, figureLabels[i])));
  if (figures.includes("val_loss")) byId("figure").value = "val_loss";
  for (const over of ["step", "tokens", "seconds"]) {
    if (over === "step" || curves.some((curve) => curve.x?.[over])) {
      byId("over").append(make("option", { value: over }, over));
    }
  }
  for (const id of ["figure", "over", "bands", "log"]) byId(id).addEventListener("change", showCurves);
  byId("search").addEventListener("input", showLines);
  byId("choose-all").addEventListener("click", () => chooseShown(true));
  byId("choose-none").addEventListener("click", () => choose([...chosen], false));
  byId("view-arms").addEventListener("click", () => showView(views.arms));
  byId("view-runs").addEventListener("click", () => showView(views.runs));
  for (const button of document.querySelectorAll("button[data-arm]")) {
    button.addEventListener("click", () =>
      choose(runsOf[button.dataset.arm], button.getAttribute("aria-pressed") !== "true"));
  }
  if (runsOf.length === count) byId("view-arms").parentNode.hidden = true;
  showView(view);
  // something is drawn at once: the first few lines that have curves
  const drawable = (runs) => runs.some((run) => lineOf(run, byId("figure").value, "step"));
  choose(view.runs.filter(drawable).slice(0, 4).flat(), true);
  new ResizeObserver(later).observe(byId("chart"));
})();
